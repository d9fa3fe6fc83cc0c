"""CURLoRA where nothing else of this package is used: a plain loop, the HF Trainer, and generation."""

import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from curlora_lab import CurLoraConfig


class Counting(Dataset):
    """Rows of tokens that count upwards, which a model can learn by its adapter."""

    def __init__(self, rows=16):
        self.rows = [torch.arange(start, start + 8) % 40 + 3 for start in range(rows)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def adapted(base):
    config = CurLoraConfig(r=8, alpha=1.0, target_modules="all-linear", orthonormal=True, task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(base), config)


def cores(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "curlora_U" in name}


def loss_of(model):
    rows = torch.stack(Counting().rows)
    with torch.no_grad():
        return float(model.eval()(input_ids=rows, labels=rows).loss)


def test_a_plain_loop(llama_case):
    model = adapted(llama_case.build())
    before = loss_of(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2, weight_decay=0.0)
    rows = torch.stack(Counting().rows)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    model.train()
    for _ in range(20):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(model) < before - 0.1
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_hf_trainer_trains_saves_and_goes_on(llama_case, tmp_path, checkpointing):
    base = llama_case.build()
    model = adapted(base)
    before = loss_of(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=8, num_train_epochs=8, learning_rate=5e-2,
        save_strategy="epoch", report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", seed=0,
        gradient_checkpointing=checkpointing, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Counting())
    trainer.train()
    after = loss_of(trainer.model)
    assert after < before - 0.1
    trained = cores(trainer.model)
    assert all(core.any() for core in trained.values())
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    for checkpoint in (checkpoints[-1], checkpoints[3]):  # nothing is left to do; half of it is
        assert (checkpoint / "adapter_model.safetensors").is_file()
        again = Trainer(model=adapted(base), args=arguments, train_dataset=Counting())
        again.train(resume_from_checkpoint=str(checkpoint))
        found = cores(again.model)
        assert found.keys() == trained.keys()
        assert all(torch.equal(found[name], trained[name]) for name in trained)


def test_generation_with_a_saved_adapter(llama_case, tmp_path):
    base = llama_case.build()
    base.save_pretrained(tmp_path / "base")
    config = llama_case.config(init_weights=False, alpha=1e3)
    model = get_peft_model(type(base).from_pretrained(tmp_path / "base"), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    prompt = torch.tensor([[3, 4, 5]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    expected = model.generate(input_ids=prompt, **options)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(loaded.generate(input_ids=prompt, **options), expected)
    merged = loaded.merge_and_unload()
    assert torch.equal(merged.generate(input_ids=prompt, **options), expected)
