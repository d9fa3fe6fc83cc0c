"""What a quantised base layer allows: whether its product can be read, in which dtype it is made, and when its weight can be.

Tested on the real libraries: bitsandbytes in 4 and 8 bits, and torchao in int8. Others that PEFT knows how to dequantise
are treated as torchao is.
"""

import torch
from peft.utils.quantization_utils import QuantizationBackend
from torch import nn

_EXACT = ("bnb 4bit",)  # multiplies with the dequantised weight and rounds no input below the compute dtype


def is_exact(backend: QuantizationBackend | None) -> bool:
    """Whether the product of a layer is that of its (dequantised) weight; one that rounds its input is not."""
    return backend is None or backend.backend_name in _EXACT


def product_dtype(base: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Dtype in which a quantised layer makes the product that it gives out in another.

    After `prepare_model_for_kbit_training` inputs are float32 and so are outputs, while the product in between is made in
    the compute dtype, and has its digits only.

    Args:
        base: The quantised layer.
        dtype: Dtype of its output.

    Returns:
        The compute dtype if that is a half precision, else that of the output.
    """
    compute = getattr(base, "compute_dtype", None)
    return compute if compute in (torch.float16, torch.bfloat16) else dtype


def keep_trainable(model: nn.Module) -> None:
    """Switch off what bitsandbytes does to 4-bit layers in evaluation on a CPU with AVX512-BF16.

    There the first forward without gradients packs the weight in place for a kernel that has no backward pass: gradients
    of the layers below end in silence, and dequantising gives other weights. The other kernels are slower, and right.

    Args:
        model: Model about to be adapted.

    Raises:
        RuntimeError: A layer was packed before.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            require_readable(module, name)
            module.support_avx512bf16_for_cpu = False


def require_readable(base: nn.Module, name: str) -> None:
    """Refuse a 4-bit layer whose weight is packed for inference on the CPU; see :func:`keep_trainable`.

    Raises:
        RuntimeError: It is.
    """
    state = getattr(getattr(base, "weight", None), "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise RuntimeError(
            f"the 4-bit weight of {name!r} was packed by bitsandbytes for inference on this CPU, which rounds it, cuts "
            f"gradients and cannot be undone; load the model again, and add the adapter before its first forward pass."
        )
