"""A signal ends a run with the exit code that is the custom, after a checkpoint where there is one to make."""

import os
import signal

import pytest

from curlora_lab.continual.signals import SIGNALS, Interrupted, Interruption


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_outside_training_a_signal_ends_the_run_at_once(number, code):
    with pytest.raises(Interrupted) as caught, Interruption():
        send(number)
    assert caught.value.code == code
    assert str(caught.value) == f"stopped by {signal.Signals(number).name}"


@pytest.mark.parametrize("number", SIGNALS)
def test_while_training_it_waits_for_the_next_step(number):
    with Interruption() as interruption:
        interruption.deferring = True
        send(number)
        assert interruption.received == number
        with pytest.raises(Interrupted):
            interruption.leave()


def test_a_second_ctrl_c_does_not_wait():
    with Interruption() as interruption:
        interruption.deferring = True
        send(signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGINT)
    assert caught.value.code == 130


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_who_took_the_signal_before_decides():
    seen = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with Interruption() as interruption:
            interruption.deferring = True
            send(signal.SIGUSR1)
            interruption.leave()
            assert seen == [signal.SIGUSR1]
            assert interruption.received is None
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_a_child_process_that_inherited_the_handler_can_still_be_ended():
    with Interruption() as interruption:
        interruption.deferring = True
        child = os.fork()
        if child == 0:
            send(signal.SIGINT)  # of the whole group: for the parent
            send(signal.SIGTERM)
            os._exit(7)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
