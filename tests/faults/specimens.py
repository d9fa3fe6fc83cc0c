"""What is damaged: folders and files as the lab leaves them, finished, killed, stopped and exported."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.faults import cases, exporting
from tests.faults.kills import Plan
from tests.faults.points import NAMES, Counting
from tests.faults.warm import KILLED, REFUSED, Shared, fork
from torch import Tensor
from transformers import AutoTokenizer

from curlora_lab.backbone import BUILTIN_FOLDER
from curlora_lab.data.cache import encode_cached
from curlora_lab.data.encoding import Encoder
from curlora_lab.sweeps import jobs
from curlora_lab.tasks import SequenceClassification
from curlora_lab.tasks.base import Batch

#: Texts of the tokenised cache.
TEXTS = [(f"it rained on day {number}, and nobody minded",) for number in range(50)]


@dataclass(frozen=True)
class Specimen:
    """What is damaged: a finished run with an export and a cache, and one that was killed inside its last stage.

    Args:
        made: The undisturbed run.
        finished: Its run folder.
        running: Run folder of the killed one.
        export: The exported adapter, where the adapter can be exported.
        cache: A tokenised cache.
        job: File of a sweep's job.
        stopped: What a run that stopped at a number which was none has kept of its weights.
    """

    made: Plan
    finished: Path
    running: Path
    export: Path | None
    cache: Path
    job: Path
    stopped: Path


def specimen(made: Plan, workplace: Path) -> Specimen:
    """Make everything that is damaged, from an undisturbed run."""
    case = made.case
    whole = Path(shutil.copytree(made.finished, workplace / f"{case.name}-finished"))
    finished = cases.run_folder(whole)
    place = workplace / f"{case.name}-running"
    place.mkdir()

    def until_the_last_stage() -> int:
        Counting(Shared(len(NAMES)), ("step", made.moments["step"] - 1)).install()
        return cases.do_run(made.configuration)

    if (code := fork(until_the_last_stage, cwd=place, log=place / "output.txt").wait()) != KILLED:
        raise AssertionError(f"the run was to be killed and ended with {code}")
    export = workplace / f"{case.name}-export"
    has_lora = case.name != "full"
    if has_lora and exporting.export(finished, export) != 0:
        raise AssertionError("the export failed")
    encode_cached(encoder(), TEXTS, workplace / "cache")
    return Specimen(
        made,
        finished,
        cases.run_folder(place),
        export if has_lora else None,
        workplace / "cache",
        _job(finished, workplace / f"{case.name}-sweep"),
        _stopped(made, workplace / f"{case.name}-stopped"),
    )


def _job(finished: Path, sweep: Path) -> Path:
    """The file of a job as the sweep writes it."""
    path = jobs.job_file(sweep, ["rank=4", "seed=0"])
    values: dict[str, float | None] = {"continual/average": 0.75, "probe/builtin/perplexity_ratio": None}
    jobs.record(path, jobs.Job(3, ["rank=4", "seed=0"]), lambda entered: entered(finished, False) or values)
    return path


def _stopped(made: Plan, place: Path) -> Path:
    """The folder ``stopped`` of a run whose loss is no number in its last stage."""
    place.mkdir()

    def until_a_loss_is_none() -> int:
        real = SequenceClassification.batch_loss

        def batch_loss(task: SequenceClassification, batch: Batch) -> Tensor:
            return real(task, batch) * (float("nan") if task.stage == 2 else 1.0)

        SequenceClassification.batch_loss = batch_loss  # type: ignore[method-assign]
        return cases.do_run(made.configuration)

    child = fork(until_a_loss_is_none, cwd=place, log=place / "output.txt")
    if child.wait() != REFUSED or not (found := cases.run_folder(place) / "stopped").is_dir():
        raise AssertionError(f"the run was to stop: {child.text()[-2000:]}")
    return found


@functools.cache
def encoder() -> Encoder:
    """What :data:`TEXTS` are tokenised with."""
    return Encoder(AutoTokenizer.from_pretrained(BUILTIN_FOLDER), columns=["text"], max_length=32)


def newest(made: Specimen) -> Path:
    """Folder of the newest checkpoint of the killed run."""
    found = sorted((made.running / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    if not found:
        raise AssertionError(f"{made.running} has no checkpoints")
    return found[-1]
