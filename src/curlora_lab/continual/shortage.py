"""Out of memory: what was being done, and which overrides would have it fit with the same effective batch."""

import torch

from curlora_lab.tasks import TaskModule

#: What libraries say when memory was refused; the errors themselves are of no kind of their own.
REFUSALS = (
    "can't allocate memory",  # torch on a CPU, Linux
    "not enough memory",  # torch on a CPU, Windows
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


class OutOfMemoryError(RuntimeError):
    """There was not enough memory; the message says what for and what helps."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory was refused, on a GPU or by the system."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(refusal in text for refusal in REFUSALS)


def explain(error: BaseException, task: TaskModule | None, *, accumulate: int, dtype: str) -> str:
    """Say what was being done and what helps.

    Args:
        error: what was raised.
        task: the task that was trained or scored; ``None``: something else was done.
        accumulate: batches in an optimiser step.
        dtype: of the model's weights.
    """
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    helps = ["model.dtype=bfloat16"] if dtype == "float32" else []
    if task is None or task.busy_with is None:
        return f"Out of memory ({dtype} weights). {first} What helps: {'; or '.join([*helps, 'a smaller model'])}."
    doing, (rows, length, *_) = task.busy_with
    plan = task.training_plan
    helps = [*_smaller(doing, plan.batch_size, plan.eval_batch_size, accumulate), *helps]
    if length > 32:
        helps.append(f"max_length={length // 2} (longer texts are then cut)")
    return (
        f"Out of memory in {doing} of task {task.name!r}, stage {task.stage}: a batch of {rows} rows x {length} tokens, "
        f"model {task.backbone.name} ({dtype}). {first} What helps: {'; or '.join(helps) or 'a smaller model'}."
    )


def _smaller(doing: str, batch_size: int, eval_batch_size: int, accumulate: int) -> list[str]:
    """Overrides that leave every number of training as it is, but for rounding."""
    if doing == "evaluation":
        return [f"eval_batch_size={eval_batch_size // 2}"] if eval_batch_size > 1 else []
    if batch_size == 1:
        return []
    share = next(factor for factor in range(2, batch_size + 1) if batch_size % factor == 0)
    effective = f"the same effective batch of {batch_size * accumulate}"
    return [f"batch_size={batch_size // share} trainer.accumulate_grad_batches={accumulate * share} ({effective})"]
