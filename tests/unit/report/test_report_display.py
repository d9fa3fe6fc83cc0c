import io
import logging
import os
import pty
from collections.abc import Iterator

import pytest

from curlora_lab.report.display import Compact, Eta, Outline, Plain, Quiet, display, hushed
from curlora_lab.report.table import stage_line

OUTLINE = Outline(names={1: "mrpc", 2: "sst2", 3: "sentiment140"}, steps={1: 10, 2: 20, 3: 10})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_by_hand() -> None:
    clock = Clock()
    eta = Eta(OUTLINE, clock=clock)
    assert eta.left is None
    clock.now = 3
    eta.row(0)  # scoring everything takes 3 seconds
    assert eta.left is None
    assert eta.share == 0
    eta.training(1, 0, 10)
    clock.now = 5
    eta.training(1, 4, 10)  # 0.5 seconds a step
    assert eta.share == pytest.approx(4 / 40)
    assert eta.left == pytest.approx((6 + 20 + 10) * 0.5 + 3 * 3)
    clock.now = 8
    eta.training(1, 10, 10)
    clock.now = 12
    eta.row(1)  # scoring took 4 seconds this time
    assert eta.share == pytest.approx(10 / 40)
    assert eta.left == pytest.approx((20 + 10) * 0.5 + 2 * 4)
    eta.training(3, 10, 10)
    assert eta.share == 1


def test_a_resumed_stage_is_timed_from_where_it_goes_on() -> None:
    clock = Clock()
    eta = Eta(OUTLINE, clock=clock)
    eta.training(2, 15, 20)
    clock.now = 2
    eta.training(2, 16, 20)  # 2 seconds a step, not 2 / 16
    assert eta.left == pytest.approx((4 + 10) * 2)


def test_plain_lines_come_now_and_then(record, caplog) -> None:
    clock = Clock()
    shown = Plain(Eta(OUTLINE, clock=clock), every=30)
    with caplog.at_level(logging.INFO, logger="curlora_lab"):
        for second in range(0, 70, 5):
            clock.now = second
            shown.training(2, second // 5 + 1, 20, 0.5)
        shown.row(record, 2)
    assert [message.split(" | ")[0] for message in caplog.messages] == [
        "stage 2/3 sst2: step 7/20",
        "stage 2/3 sst2: step 13/20",
        stage_line(record, 2).split(" | ")[0],
    ]
    assert caplog.messages[0].endswith("| loss 0.5 | about 1 min 55 s left")


@pytest.fixture
def terminal() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """A real pseudo-terminal: where to read what was written, and the stream of its other end."""
    outside, inside = pty.openpty()
    with os.fdopen(inside, "w") as stream:
        yield outside, stream
    os.close(outside)


def read(descriptor: int) -> str:
    os.set_blocking(descriptor, False)
    text = b""
    try:
        while chunk := os.read(descriptor, 65536):
            text += chunk
    except BlockingIOError:
        pass
    return text.decode()


def test_a_terminal_gets_the_compact_display_with_log_lines_above_it(record, running, terminal, monkeypatch) -> None:
    outside, stream = terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    root.addHandler(handler)
    monkeypatch.setattr(logging.getLogger("curlora_lab"), "level", logging.INFO)
    try:
        with display("auto", OUTLINE, stream=stream) as shown:
            assert isinstance(shown, Compact)
            assert handler.stream is not stream
            shown.row(running, 1)
            shown.training(2, 5, 20, 0.41)
            text = read(outside)
            assert "whole sequence" in text
            assert "so far" in text
            assert "0.701" in text
            assert "after 2" not in text  # only what is there
            assert text.index("stage 1/3 mrpc: accuracy 0.701") < text.index("so far")
        assert handler.stream is stream
        assert "\x1b[?25h" in read(outside)  # the cursor is shown again
    finally:
        root.removeHandler(handler)


def test_a_file_gets_plain_lines_and_quiet_nothing(record, terminal, monkeypatch) -> None:
    with display("auto", OUTLINE, stream=io.StringIO()) as shown:
        assert isinstance(shown, Plain)
    monkeypatch.setenv("TERM", "xterm-256color")
    with display("plain", OUTLINE, stream=terminal[1]) as shown:
        assert isinstance(shown, Plain)
    monkeypatch.setenv("TERM", "dumb")
    with display("auto", OUTLINE, stream=terminal[1]) as shown:
        assert isinstance(shown, Plain)
    with display("quiet", OUTLINE, stream=terminal[1]) as shown:
        assert isinstance(shown, Quiet)
        shown.training(1, 1, 10, 0.5)
        shown.scoring("mrpc", 0.5)
    assert read(terminal[0]) == ""
    with (
        pytest.raises(ValueError, match="display='loud' is unknown; choose one of auto, plain, quiet"),
        display("loud", OUTLINE),
    ):
        pass


def test_quiet_keeps_warnings_and_log_files(tmp_path) -> None:
    screen, log = logging.StreamHandler(io.StringIO()), logging.FileHandler(tmp_path / "train.log")
    root, speaker = logging.getLogger(), logging.getLogger("curlora_lab.test")
    speaker.setLevel(logging.INFO)
    root.addHandler(screen)
    root.addHandler(log)
    try:
        with hushed(quiet=True):
            speaker.info("a stage")
            speaker.warning("a warning")
        speaker.info("after")
    finally:
        root.removeHandler(screen)
        root.removeHandler(log)
        log.close()
    assert screen.stream.getvalue().splitlines() == ["a warning", "after"]
    assert (tmp_path / "train.log").read_text().splitlines() == ["a stage", "a warning", "after"]
