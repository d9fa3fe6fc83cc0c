"""A study as multiruns that build on one another: rates found on rows of train, the methods at their rates with every seed."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curlora_lab.sweeps import steps

TUNED = "tuned.json"


class StudyError(ValueError):
    """A study cannot go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of a comparison.

    Attributes:
        adapter: the choice of adapter; ``none`` has heads alone, whose rate is then the one that is found.
        setting: what is set beside it, ``key=value``; methods that differ in this value alone are compared in one multirun.
        rates: the learning rates that are tried.
    """

    adapter: str
    rates: tuple[str, ...]
    setting: str = ""

    @property
    def is_heads(self) -> bool:
        """Whether nothing but heads is trained."""
        return self.adapter == "none"

    @property
    def key(self) -> str:
        """What is set beside the adapter."""
        return self.setting.partition("=")[0]

    @property
    def value(self) -> str:
        """What it is set to."""
        return self.setting.partition("=")[2]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a study.

    Attributes:
        about: what it is for.
        tunes: methods whose rate is found in it.
        compares: methods that are run with every seed.
        rates_of: the phase that found their rates; ``None``: this one.
        words: what is set in all its runs.
        given: the rates found are given as numbers: with these words a method is another than the one that was tuned.
        grid: every rate that was tried is run with every seed.
        variants: grids of another protocol, by name, which are not tuned.
    """

    about: str
    tunes: tuple[str, ...] = ()
    compares: tuple[str, ...] = ()
    rates_of: str | None = None
    words: tuple[str, ...] = ()
    given: bool = False
    grid: bool = False
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One multirun.

    Attributes:
        name: of its folder.
        phase: of which it is a part.
        sweep: ``tune``, ``compare``, or ``None`` for a plain grid.
        words: what makes its runs, grids included, without what other steps have to find first.
        head: the step that finds the learning rate of its heads; ``None``: they have one.
        rates: the steps that find the learning rates of its methods.
        given: whether these are given as a number, not as files.
    """

    name: str
    phase: str
    sweep: str | None
    words: tuple[str, ...]
    head: str | None = None
    rates: tuple[str, ...] = ()
    given: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Steps that come before it."""
        return (*([self.head] if self.head else []), *self.rates)


class Plan:
    """All multiruns of a study in their order, and the folder that they are kept in.

    Args:
        out: the study's folder.
        methods: by name.
        phases: by name, in their order; a phase comes after those whose rates it takes.
        seeds: those that are reported, ``0,1,2``.
        tuning_seed: the one that rates are found with; none of those, so that luck by which a rate was chosen is not reported.
        settings: what all runs of a phase have in common, by the phase's name.
    """

    def __init__(
        self,
        out: Path,
        *,
        methods: Mapping[str, Method],
        phases: Mapping[str, Phase],
        seeds: str,
        tuning_seed: int,
        settings: Mapping[str, Sequence[str]],
    ) -> None:
        if str(tuning_seed) in seeds.split(","):
            raise StudyError(
                f"seeds {seeds} are reported, so rates are not found with seed {tuning_seed}; choose others."
            )
        self.out = out
        self.methods = methods
        self.phases = phases
        self.seeds = seeds
        self.tuning_seed = tuning_seed
        self.settings = settings
        self.steps = {step.name: step for name in phases for step in self._steps(name)}

    def folder(self, step: Step) -> Path:
        """Where a multirun is kept."""
        return self.out / "sweeps" / step.name

    def planned(self, step: Step) -> list[list[str]]:
        """The jobs of a multirun, without what other steps have to find first."""
        return steps.jobs_of([*self.settings[step.phase], *step.words])

    def progress(self, step: Step) -> steps.Progress:
        """How far a multirun is."""
        return steps.progress(self.folder(step), len(self.planned(step)))

    def is_done(self, step: Step) -> bool:
        """Whether nothing is missing of a multirun, and no rate that it takes was looked for again since."""
        last = steps.ended(self.folder(step))
        found = [steps.ended(self.folder(self.steps[name])) for name in step.needs]
        return self.progress(step).complete and last is not None and all(t is not None and t <= last for t in found)

    def runs(self, phases: Iterable[str], *, tuning: bool = False) -> list[Path]:
        """Folders of the finished runs of some phases.

        Args:
            phases: their names.
            tuning: those that rates were chosen by, instead of those that are reported.
        """
        wanted = [step for step in self.steps.values() if step.phase in phases and (step.sweep == "tune") == tuning]
        return list(dict.fromkeys(run for step in wanted for run in steps.run_folders(self.folder(step))))

    def needed(self, phases: Iterable[str]) -> list[Step]:
        """The multiruns of some phases and those whose rates they take, in their order."""
        wanted = {step.name for step in self.steps.values() if step.phase in phases}
        for step in reversed(self.steps.values()):
            wanted |= set(step.needs) if step.name in wanted else set()
        return [step for step in self.steps.values() if step.name in wanted]

    def arguments(self, step: Step, *, cores: int = 1) -> list[str]:
        """The command line of a multirun, with what earlier ones found.

        Args:
            step: the multirun.
            cores: how many of its jobs run side by side.

        Raises:
            StudyError: they have not found it.
        """
        words = []
        if step.head and not any(word.startswith("head_lr=") for word in step.words):
            words.append(f"head_lr={self.found(step.head)['head_lr']:g}")
        rates = [self.found(name) for name in step.rates]
        if step.given:
            words += [f"lr={method['lr']:g}" for method in rates]
        elif rates:
            files = [steps.quoted(self.folder(self.steps[name]) / TUNED) for name in step.rates]
            words.append(f"tuned=[{','.join(files)}]")
        sweep = [f"sweep={step.sweep}"] if step.sweep else []
        launch = ["launch=joblib", f"hydra.launcher.n_jobs={cores}"] if cores > 1 else []
        where = f"output_dir={steps.quoted(self.out / ('choosing' if step.sweep == 'tune' else 'runs'))}"
        return ["-m", *sweep, *launch, *self.settings[step.phase], *step.words, *words, where]

    def found(self, name: str) -> dict[str, Any]:
        """What a tuning step found for its method.

        Args:
            name: of the step.

        Raises:
            StudyError: nothing yet, or no rate at which the method trains.
        """
        path = self.folder(self.steps[name]) / TUNED
        try:
            (method,) = json.loads(path.read_text(encoding="utf-8"))["methods"]
        except FileNotFoundError:
            raise StudyError(f"{name} has found no rate yet: there is no {path}; do it first.") from None
        if method["status"] != "tuned":
            raise StudyError(f"{name} found no rate: {method['name']} is {method['status']}; see {path}.")
        return dict(method)

    def _steps(self, name: str) -> Iterator[Step]:
        phase = self.phases[name]
        for method in phase.tunes:
            yield self._tuning(name, method)
        for methods in self._together(phase):
            yield self._comparing(name, methods)
        for variant, words in phase.variants.items():
            yield Step(name=f"{name}-{variant}", phase=name, sweep=None, words=(*words, f"seed={self.seeds}"))

    def _tuning(self, name: str, method: str) -> Step:
        one = self.methods[method]
        tried = ",".join(one.rates)
        grid = (
            ["lr=1e-3", f"head_lr={tried}"] if one.is_heads else [f"lr={tried}"]
        )  # without an adapter lr has no effect
        setting = [one.setting] if one.setting else []
        words = (f"adapter={one.adapter}", *setting, *self.phases[name].words, *grid, f"seed={self.tuning_seed}")
        head = None if one.is_heads else self._head(name)
        return Step(name=f"{name}-{method}", phase=name, sweep="tune", words=words, head=head)

    def _comparing(self, name: str, methods: Sequence[str]) -> Step:
        phase, all_of = self.phases[name], [self.methods[method] for method in methods]
        first = all_of[0]
        adapters = ",".join(dict.fromkeys(one.adapter for one in all_of))
        setting = [f"{first.key}={','.join(one.value for one in all_of)}"] if first.key else []
        grid = [f"lr={','.join(first.rates)}"] if phase.grid else []
        words = (f"adapter={adapters}", *setting, *phase.words, *grid, f"seed={self.seeds}")
        tuned = () if phase.grid or first.is_heads else methods
        return Step(
            name=f"{name}-of-{methods[0]}{f'-and-{len(methods) - 1}' if len(methods) > 1 else ''}",
            phase=name,
            sweep="compare" if tuned and not phase.given else None,
            words=words,
            head=self._head(name),
            rates=tuple(f"{phase.rates_of or name}-{method}" for method in tuned),
            given=phase.given,
        )

    def _together(self, phase: Phase) -> list[tuple[str, ...]]:
        """Methods that one multirun can do: those that differ in the value of one key."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for method in phase.compares:
            one = self.methods[method]
            alone = phase.given or phase.grid or one.is_heads
            groups.setdefault((method,) if alone else (one.adapter if one.key else "", one.key), []).append(method)
        return [tuple(group) for group in groups.values()]

    def _head(self, name: str) -> str | None:
        """The tuning of heads alone that a phase takes its heads' rate from: its own, or the first before it."""
        for phase in (name, *self.phases):
            for method in self.phases[phase].tunes:
                if self.methods[method].is_heads:
                    return f"{phase}-{method}"
        return None
