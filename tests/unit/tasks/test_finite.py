"""Numbers that are not finite are found, and the policy decides."""

import pytest
import torch

from curlora_lab import config
from curlora_lab.continual.shortage import is_shortage
from curlora_lab.tasks.finite import (
    NonFiniteError,
    StepGuard,
    first_nonfinite,
    first_overflow,
    nonfinite_in,
    refuse_nonfinite,
)


def test_the_first_tensor_that_is_not_finite_is_named():
    fine = torch.full((1000,), 1e30)  # whose norm overflows
    assert first_nonfinite({"a": fine, "b": torch.zeros(2), "n": torch.tensor([1])}) is None
    assert first_nonfinite({"a": fine, "b": torch.tensor([0.0, -torch.inf])}) == "b"
    assert first_nonfinite({"a": torch.tensor([torch.nan]), "b": torch.tensor([torch.nan])}) == "a"
    assert first_nonfinite({}) is None


def test_what_overflowed_is_told_from_what_is_ruled_out():
    ruled_out, count = torch.tensor([0.0, -torch.inf]), torch.tensor([3])
    assert first_overflow({"logits": ruled_out, "count": count, "none": torch.zeros(0)}) is None
    assert first_overflow({"logits": ruled_out, "importance": torch.tensor([torch.inf])}) == "importance"
    assert first_overflow({"logits": torch.tensor([-torch.inf, torch.nan])}) == "logits"


def test_a_number_that_is_none_is_found_where_it_stands():
    inf, nan = float("inf"), float("nan")
    assert nonfinite_in({"a": [1.0, None, "nan", True], "b": -inf}, ruled_out=True) is None
    assert nonfinite_in({"a": [1.0, {"b": -inf}]}) == ("a.1.b", -inf)
    assert nonfinite_in({"a": 0.0, "b": (1, inf)}, ruled_out=True) == ("b.1", inf)
    assert nonfinite_in([nan], ruled_out=True)[0] == "0"


def test_records_that_are_no_numbers_are_refused_by_row():
    records = [{"row": 0, "log_probabilities": [0.0, float("-inf")]}, {"row": 1, "log_probabilities": [float("nan")]}]
    refuse_nonfinite(records[:1], where="here", row_name=str)
    with pytest.raises(
        NonFiniteError, match=r"here: .* of row 'second' is no number \(log_probabilities.0 is nan\)"
    ) as caught:
        refuse_nonfinite(records, where="here", row_name=lambda record: ["first", "second"][record["row"]])
    assert caught.value.place is None


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_stopping_says_what_and_where(policy):
    with pytest.raises(NonFiniteError, match="loss is nan") as caught:
        StepGuard(policy).report((1, 4), "loss is nan.")
    assert caught.value.place == (1, 4)
    assert not caught.value.weights_spoilt


def test_skipping_counts_up_to_the_limit():
    guard = StepGuard("skip", 2)
    for place in ((0, 1), (0, 1), (0, 3)):
        guard.report(place, "bad.")
    assert guard.left_out == [(0, 1), (0, 3)]
    with pytest.raises(NonFiniteError, match="2 steps of this stage were left out before"):
        guard.report((1, 0), "bad.")


def test_a_stage_that_goes_on_knows_what_was_left_out():
    guard = StepGuard("rollback")
    guard.expect([[0, 1]])  # as JSON has it
    guard.report((0, 1), "bad.")
    assert guard.left_out == [(0, 1)]


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_spoilt_weights_always_stop(policy):
    with pytest.raises(NonFiniteError, match="'U' is not finite after the step") as caught:
        StepGuard(policy).check_weights({"U": torch.tensor([torch.inf])}, (0, 2), "Task 'a'")
    assert caught.value.weights_spoilt


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("on_nonfinite=ignore", "on_nonfinite='ignore' is unknown; choose one of stop, skip, rollback"),
        ("nonfinite_limit=-1", "nonfinite_limit=-1 must not be negative"),
        ("checkpoint.every_steps=0", "checkpoint.every_steps=0 must be positive, or null for never"),
        ("checkpoint.every_seconds=-3", "checkpoint.every_seconds=-3.0 must be positive"),
    ],
)
def test_a_policy_or_plan_that_means_nothing_is_refused(compose, override, message):
    with pytest.raises(config.ConfigError, match=message):
        config.validate(compose(override))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 GB)"),
    ],
)
def test_a_shortage_of_memory_is_known_as_such(error):
    assert is_shortage(error)
    assert not is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
