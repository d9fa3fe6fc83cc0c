from types import SimpleNamespace
from typing import Any

from curlora_lab.continual.progress import ProgressReporter, expected


class Seen:
    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def training(self, *what: Any) -> None:
        self.said.append(("training", *what))

    def scoring(self, *what: Any) -> None:
        self.said.append(("scoring", *what))


def test_reports_are_made_at_most_every_so_often() -> None:
    seen, now = Seen(), SimpleNamespace(time=0.0)
    reporter = ProgressReporter(seen, every=1.0, clock=lambda: now.time)
    trainer = SimpleNamespace(
        estimated_stepping_batches=9, global_step=0, accumulate_grad_batches=2, num_test_batches=[4]
    )
    task = SimpleNamespace(stage=2, name="sst2")
    reporter.on_train_start(trainer, task)
    for step in range(1, 5):
        now.time, trainer.global_step = 0.4 * step, step
        reporter.on_train_batch_end(trainer, task, {"loss": 0.25}, None, step)
    reporter.on_train_end(trainer, task)
    assert seen.said == [
        ("training", 2, 0, 9, None),
        ("training", 2, 1, 9, 0.5),  # Lightning hands out the loss divided by the batches of a step
        ("training", 2, 4, 9, 0.5),
        ("training", 2, 4, 9, None),
    ]
    now.time = 9.0
    reporter.on_test_batch_end(trainer, task, None, None, 1)
    reporter.on_test_batch_end(trainer, task, None, None, 2)
    assert seen.said[4:] == [("scoring", "sst2", 0.5)]


def test_an_endless_stage_has_no_known_number_of_steps() -> None:
    seen = Seen()
    trainer = SimpleNamespace(estimated_stepping_batches=float("inf"), global_step=3, accumulate_grad_batches=1)
    ProgressReporter(seen).on_train_start(trainer, SimpleNamespace(stage=1, name="a"))
    assert seen.said == [("training", 1, 3, 0, None)]


def test_steps_of_the_whole_sequence() -> None:
    def task(name: str, rows: int) -> Any:
        plan = SimpleNamespace(batch_size=32, epochs=2)
        return SimpleNamespace(name=name, training_plan=plan, data=SimpleNamespace(counts={"train": rows}))

    plans: Any = [SimpleNamespace(task=task(name, rows)) for name, rows in (("a", 64), ("b", 33), ("c", 1))]
    assert expected(plans) == {"names": {1: "a", 2: "b", 3: "c"}, "steps": {1: 4, 2: 4, 3: 2}}
