"""Small runs that still have everything a run has: two tasks, several optimiser steps, probes, a report."""

import functools
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from curlora_lab import config
from curlora_lab.backbone import BUILTIN_FOLDER

#: Two tasks of a few rows, two epochs, checkpoints at every optimiser step, a probe of a few texts.
SMALL = (
    "~sequence.tasks.sentiment3",
    "sequence.tasks.paraphrase.data.source.sizes={train: 60, choose: 12, test: 16}",
    "sequence.tasks.sentiment2.data.source.sizes={train: 60, choose: 12, test: 16}",
    "train_rows=24",
    "eval_rows=12",
    "batch_size=8",
    "epochs=2",
    "max_length=32",
    "rank=4",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "probe.probes.builtin.source.sizes.test=4",
    "probe.probes.builtin.shift_positions=16",
    "output_dir=runs",
)

#: What makes the strategy ``anchor`` quick.
ANCHOR = ("strategy.text.source.sizes.train=16", "strategy.batch_size=2")

#: A third task.
TOPIC = (
    "+task@sequence.tasks.topic=builtin_topic",
    "sequence.tasks.topic.data.source.sizes={train: 60, choose: 12, test: 16}",
)

#: The name of the run folder of a run that was there before.
EARLIER = "earlier"

#: Keys that make a run write checkpoints inside a stage at every step, where the configuration knows them.
OFTEN = {"checkpoint.every_steps": "1", "trainer.checkpoint.every_steps": "1"}


@dataclass(frozen=True)
class Case:
    """One configuration of a run.

    Args:
        name: Short name.
        overrides: What it differs in from :data:`SMALL`.
        model: ``small`` (two layers, with dropout, made by the harness) or ``tiny`` (the built-in one).
        earlier: What a run differs in from :data:`SMALL` that is finished before and whose stages this one reuses;
            ``None``: there is no such run.
    """

    name: str
    overrides: tuple[str, ...] = ()
    model: str = "small"
    earlier: tuple[str, ...] | None = None


CASES = (
    Case("curlora", ("adapter=curlora",)),
    Case("lora, gradient accumulation", ("adapter=lora", "trainer.accumulate_grad_batches=2", "scheduler=cosine")),
    Case("pissa, best epoch", ("adapter=pissa", "callbacks=best")),
    Case("full, SGD", ("adapter=full", "optimizer=sgd")),
    Case("none, early stopping", ("adapter=none", "callbacks=early_stopping")),
    Case("dora", ("adapter=dora",)),
    Case("vera, constant rate", ("adapter=vera", "scheduler=constant")),
    Case("curlora, built-in model", ("adapter=curlora",), "tiny"),
    Case("curlora, ewc", ("adapter=curlora", "strategy=ewc")),
    Case("lora, replay", ("adapter=lora", "strategy=replay")),
    Case("curlora, derpp", ("adapter=curlora", "strategy=derpp")),
    Case("lora, olora", ("adapter=lora", "strategy=olora")),
    Case("curlora, agem", ("adapter=curlora", "strategy=agem")),
    Case("curlora, lwf", ("adapter=curlora", "strategy=lwf")),
    Case("lora, per task", ("adapter=lora", "strategy=per_task")),
    Case("curlora_published, mas", ("adapter=curlora_published", "strategy=mas", "strategy.rows=8")),
    Case("lora_xs, anchor", ("adapter=lora_xs", "strategy=anchor", *ANCHOR)),
    Case("lora_published, nlora", ("adapter=lora_published", "strategy=nlora")),
    Case("ia3, independent", ("adapter=ia3", "scenario=independent")),
    Case("milora", ("adapter=milora",)),
    Case("curlora_frozen_u", ("adapter=curlora_frozen_u",)),
    Case("lora_frozen_a", ("adapter=lora_frozen_a",)),
    Case("rslora, label words", ("adapter=rslora", "heads=label_words")),
    Case("osf, built-in model", ("adapter=osf",), "tiny"),
    Case("lora, joint", ("adapter=lora", "scenario=joint")),
    Case("curlora, reused stages", ("adapter=curlora", *TOPIC), earlier=("adapter=curlora",)),
)


def available(cases: Sequence[Case] = CASES) -> list[Case]:
    """Those cases whose options exist."""
    return [case for case in cases if all(_exists(override) for override in case.overrides)]


def _exists(override: str) -> bool:
    group, _, option = override.partition("=")
    folder = config.conf_dir() / group
    return not folder.is_dir() or (folder / f"{option}.yaml").is_file()


def small_model(folder: Path) -> Path:
    """A GPT-2 of two layers with dropout and the built-in tokenizer, saved for all cases; the same bytes each time."""
    if (folder / "config.json").is_file():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_FOLDER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            resid_pdrop=0.1,
            embd_pdrop=0.1,
            attn_pdrop=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = GPT2LMHeadModel(shape)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def configured(case: Case, models: Path, *more: str) -> dict[str, Any]:
    """The validated configuration of a case.

    Args:
        case: The case.
        models: Folder for the models that the harness makes.
        more: Further overrides.
    """
    model = [] if case.model == "tiny" else ["model=local", f"model.path={small_model(models / 'small').resolve()}"]
    given = (*SMALL, *model, *_checkpoints(), *case.overrides, *more)
    return config.validate(composed(given))


def composed(overrides: Sequence[str]) -> Any:
    """Compose the real configuration as the command line would."""
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@functools.cache
def _checkpoints() -> tuple[str, ...]:
    from omegaconf import OmegaConf

    plain = composed(())
    return tuple(
        f"{key}={value}" for key, value in OFTEN.items() if OmegaConf.select(plain, key.rpartition(".")[0]) is not None
    )


def run_folder(workplace: Path) -> Path:
    """The one run folder below a workplace, but for the one that was there before."""
    found = sorted(path.parent for path in workplace.glob("runs/*/*/config.yaml") if path.parent.name != EARLIER)
    if len(found) != 1:
        raise AssertionError(f"{workplace} has {len(found)} run folders, not one: {found}")
    return found[0]


def do_run(configuration: dict[str, Any], overrides: Sequence[str] = ()) -> int:
    """Do a run in this process, as the command line would; the exit code."""
    from curlora_lab.run import RunLockedError, run

    logging.getLogger("curlora_lab").setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(levelname)s %(message)s")
    os.environ["COLUMNS"] = "120"
    try:
        run(configuration, overrides=list(overrides))
    except RunLockedError as error:
        print(f"RunLockedError: {error}")
        return 3
    return 0


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def dumps(value: Any) -> str:
    """JSON of any value, NaN and numbers of any length included."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)
