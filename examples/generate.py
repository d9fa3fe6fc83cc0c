"""`model.generate` with a CURLoRA adapter: on, disabled, merged, and beside a second one in the same batch.

python examples/generate.py
"""

import argparse

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from curlora_lab import CurLoraConfig
from curlora_lab.backbone import BUILTIN_FOLDER

PROMPT = "We stayed at the hotel. The room was"
ENDINGS = {"pleased": f"{PROMPT} lovely and the bed was superb.", "cross": f"{PROMPT} awful and the bed was poor."}


def main(*, model: str = str(BUILTIN_FOLDER), steps: int = 60, rank: int = 16) -> dict[str, str]:
    """Teach two adapters one ending each, and generate in every way.

    Args:
        model: Folder or hub id of a causal language model.
        steps: Training steps for each adapter.
        rank: Rank r.

    Returns:
        What was generated: by the base (`disabled`), by `pleased` and `cross`, in one `mixed` batch of base,
        pleased and cross, and by the model into which `pleased` was `merged`.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = CurLoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config, adapter_name="pleased")
    adapted.add_adapter("cross", config)  # same seed and rank: the same C and R, only U differs
    for name, ending in ENDINGS.items():
        adapted.set_adapter(name)
        learn(adapted.train(), tokenizer(ending, return_tensors="pt")["input_ids"], steps)
    adapted.eval()

    prompt = tokenizer([PROMPT], return_tensors="pt", return_token_type_ids=False)
    prompts = {name: tensor.expand(3, -1) for name, tensor in prompt.items()}
    options = {"max_new_tokens": 6, "do_sample": False}

    def said(output: torch.Tensor) -> str:
        return " | ".join(tokenizer.batch_decode(output, skip_special_tokens=True))

    texts = {"mixed": said(adapted.generate(**prompts, **options, adapter_names=["__base__", "pleased", "cross"]))}
    with adapted.disable_adapter():
        texts["disabled"] = said(adapted.generate(**prompt, **options))
    for name in ENDINGS:
        adapted.set_adapter(name)
        texts[name] = said(adapted.generate(**prompt, **options))
    adapted.set_adapter("pleased")
    merged = adapted.merge_and_unload()  # a plain transformers model again, as fast as the base
    texts["merged"] = said(merged.generate(**prompt, **options))
    for name, text in texts.items():
        print(f"{name:>9}: {text}")
    return texts


def learn(model: torch.nn.Module, tokens: torch.Tensor, steps: int) -> None:
    """Train the active adapter on one row of tokens."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.03)
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUILTIN_FOLDER), help="folder or hub id of a causal language model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=16)
    main(**vars(parser.parse_args()))
