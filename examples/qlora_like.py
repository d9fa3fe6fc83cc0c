"""CURLoRA on a 4-bit backbone, as QLoRA does for LoRA (extra `quant`: pip install "curlora-lab[quant]").

python examples/qlora_like.py                       # on a GPU where there is one
python examples/qlora_like.py --model mistralai/Mistral-7B-v0.3

The update reads the output of the 4-bit layer, so the weight is not dequantised a second time for the adapter. On a CPU
bitsandbytes runs its own 4-bit kernels, slower than float32; without bitsandbytes the backbone stays in full precision.
"""

import argparse
from importlib.util import find_spec
from typing import Any

import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from curlora_lab import CurLoraConfig
from curlora_lab.backbone import BUILTIN_FOLDER

SENTENCE = "The hotel was far from bad, and the soup was good."


def main(*, model: str = str(BUILTIN_FOLDER), steps: int = 60, rank: int = 16) -> dict[str, Any]:
    """Load in 4 bits where that is possible, train, and say what ran.

    Args:
        model: Folder or hub id of a causal language model.
        steps: Training steps.
        rank: Rank r.

    Returns:
        `device`, whether the backbone is `quantized` and how many `layers_in_4_bits` it has, and the loss in nats a token
        `before` and `after` training.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quantized = find_spec("bitsandbytes") is not None
    if device == "cpu":
        print("No GPU here: 4-bit layers run on the CPU's kernels of bitsandbytes, for a test and not for speed.")
    if not quantized:
        print('bitsandbytes is not installed (pip install "curlora-lab[quant]"): the backbone stays in full precision.')
    compute = torch.bfloat16 if device == "cuda" else torch.float32
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    backbone = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=four_bits if quantized else None, dtype=compute, device_map={"": device}
    )
    if quantized:
        backbone = prepare_model_for_kbit_training(backbone, use_gradient_checkpointing=device == "cuda")
    layers = sum(type(module).__name__ == "Linear4bit" for module in backbone.modules())
    adapted = get_peft_model(backbone, CurLoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.print_trainable_parameters()

    tokens = AutoTokenizer.from_pretrained(model)(SENTENCE, return_tensors="pt")["input_ids"].to(device)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.03)
    losses = []
    for _ in range(steps + 1):
        loss = adapted(input_ids=tokens, labels=tokens).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    result = {
        "device": device,
        "quantized": layers > 0,
        "layers_in_4_bits": layers,
        "before": losses[0],
        "after": losses[-1],
    }
    print(result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILTIN_FOLDER), help="folder or hub id of a causal language model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=16)
    main(**vars(parser.parse_args()))
