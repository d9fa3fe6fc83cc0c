"""A small study of CURLoRA and its rivals that anyone can repeat: rates found on rows of train, then seeds, then pages.

python scripts/study_small.py --out studies/small --list                             # what there is to do, how far it is
python scripts/study_small.py --out studies/small --count                            # runs, tokens, how long it will take
python scripts/study_small.py --out studies/small                                    # built-in model and tasks
python scripts/study_small.py --out studies/small --model-path M --data-dir D        # a model and data in folders
python scripts/study_small.py --out studies/small --size extended --only bases       # one phase of the long form
python scripts/study_small.py --out studies/small --publish docs/studies/small       # what is small enough for git

The same command again goes on with what is missing. Each phase is one multirun of train.py or several; their commands are
printed. The code is copied to <out>/source first, and that copy makes all runs, whatever is edited meanwhile.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from curlora_lab import config
from curlora_lab.continual.files import read_json, write_json
from curlora_lab.report import RecordError, read_record
from curlora_lab.report.aggregate import write_aggregate
from curlora_lab.report.archive import ArchiveError
from curlora_lab.sweeps import snapshot, steps
from curlora_lab.sweeps.plan import Method, Phase, Plan, Step, StudyError
from curlora_lab.sweeps.published import common_places, publish
from curlora_lab.sweeps.workload import Workload, total, workload
from curlora_lab.terminal import quieten

SEEDS = "0,1,2,3,4"
TUNING_SEED = 100

LOW, MIDDLE, HIGH = ("1e-3", "3e-3", "1e-2"), ("3e-3", "1e-2", "3e-2"), ("1e-2", "3e-2", "1e-1")


def basis(name: str, *rates: str) -> Method:
    """CURLoRA with one of its bases."""
    return Method(adapter="curlora", setting=f"adapter.basis={name}", rates=rates)


#: Rates half a decade apart around where small story models learn, so low that the lowest is not the one that is found (the
#: smallest of those that learn as much moves the language model least); the built-in model's are below.
METHODS = {
    "head_only": Method(adapter="none", rates=("1e-2", "3e-2", "1e-1")),
    "inverse_norm": basis("inverse_norm", "3e-3", *HIGH),
    "svd_top": basis("svd_top", "3e-4", *LOW),  # the factors of LoRA-XS
    "uniform": basis("uniform", *MIDDLE),
    "lora_1": Method(adapter="lora", setting="rank=1", rates=("3e-4", "1e-3", "3e-3")),
    "lora_16": Method(adapter="lora", setting="rank=16", rates=("1e-4", "3e-4", "1e-3")),
    "full": Method(adapter="full", rates=("3e-5", "1e-4", "3e-4")),
    "dora": Method(adapter="dora", rates=("3e-4", "1e-3", "3e-3")),
    "vera": Method(adapter="vera", rates=MIDDLE),
    "pissa": Method(adapter="pissa", rates=("1e-4", "3e-4", "1e-3")),
    **{name: basis(name, *HIGH) for name in ("lowest_norm", "inverse_leverage", "svd_bottom")},
    **{name: basis(name, *MIDDLE) for name in ("norm", "leverage", "deim", "pivoted_qr")},
    **{name: basis(name, *LOW) for name in ("highest_norm", "gaussian")},
}
TRAINED = ("inverse_norm", "svd_top", "uniform", "lora_1", "lora_16")
ALL, FEW = (*TRAINED, "head_only"), ("inverse_norm", "svd_top", "lora_16")
ADAPTERS = ("full", "dora", "vera", "pissa")
BASES = tuple(name for name, one in METHODS.items() if one.adapter == "curlora" and name not in TRAINED)
BUILTIN_RATES = dict.fromkeys(("inverse_norm", "svd_top", "uniform", "lora_1", *BASES), LOW)
BUILTIN_RATES["lora_16"] = ("3e-4", "1e-3", "3e-3")
QUICK_METHODS = ("head_only", "inverse_norm", "lora_16")

BOTH = ("rank=8", "adapter=curlora_published,lora_published")
#: The published protocol with one fault removed; docs/paper.md says what each is.
MENDED = {
    "published": BOTH,
    "draw": ("rank=8", "adapter=curlora"),
    "start": ("rank=8", "adapter=lora"),
    "rates": (*BOTH, "lr=2.5e-3,2.5e-2"),
    "heads": (*BOTH, "head_lr=5e-3"),
    "pooling": (*BOTH, "model.pooling=last_token"),
    "shuffle": (*BOTH, "shuffle=true"),
    "schedule": (*BOTH, "scheduler.count=steps", "scheduler.warmup_steps=null"),
    "unscheduled": (*BOTH, "sequence.tasks.sentiment140.scheduled=true"),
    "pairs": (*BOTH, "sequence.tasks.mrpc.data.pairs=template"),
    "sample": (*BOTH, *(f"sequence.tasks.{task}.data.subset=random" for task in ("mrpc", "sst2"))),
    "sentiment140": (
        *(*BOTH, "task@sequence.tasks.sentiment140=sentiment140"),
        *("sequence.tasks.sentiment140.data.train_rows=498", "sequence.tasks.sentiment140.data.choose_fraction=0"),
    ),
    "folding": (
        *(*BOTH, "sequence.tasks.sentiment140.data.label_map={2: neutral}"),
        "sequence.tasks.sentiment140.data.drop_labels=[neutral]",
    ),
    "sorted": (*BOTH, *(f"sequence.tasks.sentiment140.data.{key}=null" for key in ("sort_by", "eval_rows"))),
    "perplexity": (*BOTH, "probe=wikitext2"),
}

CORE = {
    "head": Phase(about="the learning rate of the heads, one for all methods", tunes=("head_only",)),
    "tune": Phase(about="each method's own learning rate", tunes=TRAINED),
    "compare": Phase(about="the comparison", compares=ALL, rates_of="tune"),
}
EXTENDED = {
    **CORE,
    "rates": Phase(about="every rate, reported: learning against drift", compares=TRAINED, grid=True),
    "adapters": Phase(about="other adapters", tunes=ADAPTERS, compares=ADAPTERS),
    "bases": Phase(about="every other choice of columns and rows", tunes=BASES, compares=BASES),
    "anchor": Phase(
        about="held to the base model on generic text", tunes=FEW, compares=FEW, words=("strategy=anchor",)
    ),
    "ewc": Phase(about="elastic weight consolidation", tunes=FEW, compares=FEW, words=("strategy=ewc",)),
    "replay": Phase(about="rows of earlier tasks once more", tunes=FEW, compares=FEW, words=("strategy=replay",)),
    "order": Phase(about="the tasks the other way round", compares=ALL, rates_of="tune", words=("order=5",)),
    "scenarios": Phase(
        about="all at once, each alone", compares=ALL, rates_of="tune", words=("scenario=joint,independent",)
    ),
    "head_rates": Phase(
        about="other rates of the heads",
        compares=(*FEW, "head_only"),
        rates_of="tune",
        words=("head_lr=1e-3,1e-1",),
        given=True,
    ),
    "longer": Phase(
        about="twice as long", tunes=("head_only", *FEW), compares=(*FEW, "head_only"), words=("epochs=8",)
    ),
    "paper": Phase(about="the published protocol, its faults removed one at a time", variants=MENDED),
}
SIZES = {"core": CORE, "extended": EXTENDED, "quick": CORE}
QUICK = (
    *("train_rows=64", "eval_rows=48", "epochs=1", "gradient_batches=0"),
    *("probe.probes.builtin.source.sizes.test=20", "probe.probes.builtin.shift_positions=64"),
)
SHORT = ("train_rows=200", "eval_rows=200", "epochs=1", f"seed={TUNING_SEED}", "fresh=true")

SAVED = "study.json"
#: Root keys that make a method: they change what is trained, not how many tokens.
OF_METHODS = ("adapter", "rank", "lr", "head_lr", "strategy")


def make_plan(options: argparse.Namespace) -> Plan:
    """The study that the command line asks for; what an earlier call said of model, data and seeds holds for its folder."""
    out: Path = options.out.expanduser().absolute()
    given = {
        "model_path": options.model_path and str(options.model_path.expanduser().absolute()),
        "data_dir": options.data_dir and str(options.data_dir.expanduser().absolute()),
        "seeds": options.seeds,
        "quick": options.size == "quick" or None,
    }
    saved = read_json(out / SAVED)
    differing = [key for key, value in given.items() if saved and value is not None and value != saved[key]]
    if differing:
        named = ", ".join(f"{key}={given[key]} (there {saved[key]})" for key in differing)
        raise StudyError(f"{out} holds a study with another setting: {named}; give another --out.")
    quick = bool(saved["quick"] if saved else given["quick"])
    about = saved or {**given, "seeds": options.seeds or ("0,1" if quick else SEEDS), "quick": quick}
    if bool(about["model_path"]) != bool(about["data_dir"]):
        raise StudyError("--model-path and --data-dir belong together: a model of yours with data of yours.")
    options.saved = about
    phases = {name: phase for name, phase in SIZES[options.size].items() if about["model_path"] or not phase.variants}
    return Plan(
        out,
        methods={name: tried(name, about) for name in METHODS},
        phases={name: settled(phase, about) for name, phase in phases.items()},
        seeds=about["seeds"],
        tuning_seed=TUNING_SEED,
        settings={name: settings(name, about) for name in phases},
    )


def tried(name: str, about: Mapping[str, Any]) -> Method:
    """A method with the rates that are tried on this model; when it must be quick, two of them."""
    rates = METHODS[name].rates if about["model_path"] else BUILTIN_RATES.get(name, METHODS[name].rates)
    return replace(METHODS[name], rates=rates[:2] if about["quick"] else rates)


def settled(phase: Phase, about: Mapping[str, Any]) -> Phase:
    """A phase for this model and size: anchored on text that the model knows, with fewer methods when it must be quick."""
    story = bool(about["model_path"])
    words = tuple(
        "strategy=anchor_tinystories" if story and word == "strategy=anchor" else word for word in phase.words
    )
    tunes, compares = (
        tuple(name for name in names if not about["quick"] or name in QUICK_METHODS)
        for names in (phase.tunes, phase.compares)
    )
    return replace(phase, words=words, tunes=tunes, compares=compares)


def settings(phase: str, about: Mapping[str, Any]) -> list[str]:
    """What all runs of a phase have in common."""
    protocol = "paper" if phase == "paper" else "study"
    if not about["model_path"]:
        return [f"experiment={protocol}/builtin", *(QUICK if about["quick"] else ())]
    places = [f"model.path={steps.quoted(about['model_path'])}", f"data_dir={steps.quoted(about['data_dir'])}"]
    return [f"experiment={protocol}/local", *places, *(QUICK if about["quick"] else ())]


def show(plan: Plan, chosen: Sequence[str]) -> None:
    """Print every multirun of some phases: how many runs, how far it is, and the rate that it found or what it varies."""
    needed = plan.needed(chosen)
    width = max(len(step.name) for step in needed)
    jobs, done = 0, 0
    for name in dict.fromkeys(step.phase for step in needed):
        print(f"\n{name}: {plan.phases[name].about}")
        for step in (step for step in needed if step.phase == name):
            far = plan.progress(step)
            jobs, done = jobs + far.planned, done + far.done
            print(f"  {step.name:<{width}}  {far.planned:>3} runs  {far.word:<12}  {said(plan, step, far)}")
    print(f"\n{jobs} runs in {len(needed)} multiruns, {done} done")


def said(plan: Plan, step: Step, far: steps.Progress) -> str:
    """The rate that a multirun found; before that, what it is given."""
    if step.sweep != "tune" or not far.complete:
        return " ".join(step.words)
    method = plan.found(step.name)
    key = "head_lr" if method["head_lr_tuned"] else "lr"
    return f"{key}={method[key]:g}{' at the edge of what was tried' if method['edge'] else ''}"


def count(plan: Plan, chosen: Sequence[str], workers: int) -> None:
    """Print exactly how many tokens some phases train on and evaluate, and how long that takes by a short run made now."""
    quieten()
    known: dict[tuple[str, ...], Workload] = {}
    by_phase: dict[str, list[Workload]] = {}
    for step in plan.needed(chosen):
        choosing = ("evaluate_on=choose",) if step.sweep == "tune" else ()
        for job in plan.planned(step):
            words = tuple(word for word in job if word.split("=")[0].split(".")[0] not in OF_METHODS)
            key = (*words, "adapter=none", "strategy=none", *choosing)
            if key not in known:
                known[key] = workload(composed(plan, *key))
            by_phase.setdefault(step.phase, []).append(known[key])
    for name, work in by_phase.items():
        print(f"{name}: {len(work)} runs, {described(total(work))}")
    everything = [one for work in by_phase.values() for one in work]
    print(f"together: {len(everything)} runs, {described(total(everything))}")
    print("(what strategies and adapters add is not counted)")
    seconds = estimated(plan, everything)
    print(f"about {seconds / 3600:.1f} hours on one core, {seconds / 3600 / workers:.1f} with --jobs {workers}")


def described(work: Workload) -> str:
    """A workload in words."""
    return f"{work.trained:,} tokens trained, {work.evaluated:,} evaluated (of these {work.probed:,} by probes)"


def estimated(plan: Plan, work: Sequence[Workload]) -> float:
    """Seconds that runs take on one core, by the speed of a short one."""
    words = [*plan.settings["compare"], "adapter=curlora", *SHORT]
    folder = plan.out / "estimate"
    spell = steps.Work([*words, f"output_dir={steps.quoted(folder)}"]).wait()
    newest = max(folder.glob("*/*/results.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if spell.code != 0 or newest is None:
        raise StudyError(f"the short run failed with exit code {spell.code}; what it printed says why.")
    cost, short = read_record(newest)["cost"], workload(composed(plan, *words))
    reading = (short.scored + short.probed) / cost["evaluation_seconds"]
    training = short.trained / (cost["seconds"] - cost["evaluation_seconds"] - short.watched / reading)
    start = spell.seconds - cost["seconds"]
    print(
        f"measured: {training:,.0f} tokens trained and {reading:,.0f} evaluated a second, {start:.0f} s to start a run"
    )
    all_of = total(work)
    return all_of.trained / training + all_of.evaluated / reading + len(work) * start


def composed(plan: Plan, *words: str) -> dict[str, Any]:
    """A validated configuration, as ``train.py`` would have it."""
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return config.validate(compose("train", overrides=[*words, f"output_dir={steps.quoted(plan.out / 'runs')}"]))


def carry_out(plan: Plan, chosen: Sequence[str], cores: int) -> bool:
    """Do what is missing of some phases; whether all of it is there in the end."""
    source = snapshot.take(plan.out / "source")
    needed = {step.name: step for step in plan.needed(chosen)}
    left_out = []

    def begin(name: str, share: int) -> steps.Work | None:
        step = needed[name]
        if plan.is_done(step):
            print(f"{name}: done before")
            return None
        try:
            arguments = plan.arguments(step, cores=share)
        except StudyError as error:
            print(f"{name}: left out. {error}", file=sys.stderr)
            left_out.append(name)
            return None
        print(f"\n{name} ({plan.progress(step).word}): python train.py {shlex.join(arguments)}", flush=True)
        return steps.Work(arguments, folder=plan.folder(step), source=source)

    needs = {name: step.needs for name, step in needed.items()}
    sizes = {name: len(plan.planned(step)) for name, step in needed.items()}
    complete = True
    with closing(steps.side_by_side(needs, begin, cores=cores, sizes=sizes)) as ended:
        for name, spell in ended:
            if spell is not None and spell.code not in (0, 1):
                raise StudyError(f"{name} ended with exit code {spell.code}; the same command goes on.")
            complete &= spell is None or spell.code == 0
    return complete and not left_out


def write_pages(plan: Plan, chosen: Sequence[str]) -> None:
    """The analysis of each phase that has reported runs; what is no protocol of its own stands beside the comparison."""
    for name in chosen:
        phase = plan.phases[name]
        runs = plan.runs([name])
        if not runs:
            continue
        beside = plan.runs(["compare"]) if not phase.variants else []
        write_aggregate(list(dict.fromkeys([*beside, *runs])), plan.out / "pages" / name)
        print(plan.out / "pages" / name)


def publish_study(plan: Plan, options: argparse.Namespace) -> list[Path]:
    """Copy what is small enough for git, with nothing in it that names this machine's folders."""
    about = options.saved
    places = {**common_places(), str(plan.out): "<study>"}
    words = ["python scripts/study_small.py --out <study>"]
    words += [f"--size {'quick' if about['quick'] else options.size}", f"--seeds {about['seeds']}"]
    if about["model_path"]:
        places |= {about["model_path"]: "<model>", about["data_dir"]: "<data>"}
        words += ["--model-path <model>", "--data-dir <data>"]
    return publish(plan, options.publish.absolute(), places=places, command=" ".join(words))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Returns:
        0, 1 when some runs are missing, 2 when the study cannot go on, 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    try:
        plan = make_plan(options)
        chosen = options.only.split(",") if options.only else list(plan.phases)
        if unknown := [name for name in chosen if name not in plan.phases]:
            raise StudyError(f"--only {unknown[0]}: choose from {', '.join(plan.phases)} (--size {options.size}).")
        if options.list:
            show(plan, chosen)
            return 0
        if options.publish:
            for path in publish_study(plan, options):
                print(path)
            return 0
        plan.out.mkdir(parents=True, exist_ok=True)
        write_json(plan.out / SAVED, options.saved)
        if options.count:
            count(plan, chosen, options.jobs)
            return 0
        complete = options.pages or carry_out(plan, chosen, options.jobs)
        write_pages(plan, chosen)
    except KeyboardInterrupt:
        return 130
    except (StudyError, ArchiveError, RecordError, config.ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if complete else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="folder of the study; it grows to hundreds of megabytes")
    made.add_argument("--size", choices=tuple(SIZES), default="core", help="quick: a minute, to see that it works")
    made.add_argument("--model-path", type=Path, help="a model in Hugging Face format; without it the built-in one")
    made.add_argument(
        "--data-dir", type=Path, help="folder with sst2/, agnews/, sentiment140/, tinystories/ (and so on)"
    )
    made.add_argument("--seeds", help=f"those that are reported (default: {SEEDS}); rates are found with {TUNING_SEED}")
    made.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    made.add_argument("--only", metavar="PHASE,...", help="these phases, and the rates that they need")
    made.add_argument("--list", action="store_true", help="show phases and how far they are, and do nothing")
    made.add_argument(
        "--count", action="store_true", help="count runs and tokens and estimate the time, by a short run"
    )
    made.add_argument("--pages", action="store_true", help="write the pages anew from the runs that are there")
    made.add_argument(
        "--publish", type=Path, metavar="DIR", help="copy pages, figures and records into a folder for git"
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
