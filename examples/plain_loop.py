"""CURLoRA in a plain PyTorch loop: a language model learns one sentence by heart, and forgets it again.

python examples/plain_loop.py
"""

import argparse
import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from curlora_lab import CurLoraConfig
from curlora_lab.backbone import BUILTIN_FOLDER

SENTENCE = "The hotel was far from bad, and the soup was good."


def main(*, model: str = str(BUILTIN_FOLDER), steps: int = 60, rank: int = 16) -> dict[str, float]:
    """Train, save, and load again.

    Args:
        model: Folder or hub id of a causal language model.
        steps: Training steps.
        rank: Rank r.

    Returns:
        Loss on the sentence in nats a token: `before` and `after` training, with the adapter `disabled`, and `loaded`
        onto a fresh backbone.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    batch = tokenizer(SENTENCE, return_tensors="pt", return_token_type_ids=False)
    backbone = AutoModelForCausalLM.from_pretrained(model)

    # From here on it is PEFT: U (r x r) is trained in every target module, all else is frozen.
    adapted = get_peft_model(backbone, CurLoraConfig(r=rank, target_modules="all-linear"))
    adapted.print_trainable_parameters()

    losses = {"before": _loss(adapted, batch)}
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.03)
    for _ in range(steps):
        loss = adapted(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    losses["after"] = _loss(adapted, batch)
    with adapted.disable_adapter():
        losses["disabled"] = _loss(adapted, batch)

    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        fresh = AutoModelForCausalLM.from_pretrained(model)
        losses["loaded"] = _loss(PeftModel.from_pretrained(fresh, folder), batch)
    for name, value in losses.items():
        print(f"{name:>9}: {value:.4f} nats a token")
    return losses


@torch.no_grad()
def _loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    return float(model.eval()(**batch, labels=batch["input_ids"]).loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILTIN_FOLDER), help="folder or hub id of a causal language model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=16)
    main(**vars(parser.parse_args()))
