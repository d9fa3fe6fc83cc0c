"""Which rows are used for what: stratified samples, the part for choosing, the first n rows of the published protocol."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch

from curlora_lab.data.chance import generator_at
from curlora_lab.data.checks import Example

Subset = Literal["random", "first"]
EvaluateOn = Literal["test", "choose"]


def stratified_sample(labels: Sequence[int], n: int, generator: torch.Generator) -> list[int]:
    """Draw n positions without replacement so that each label keeps its share.

    A label with m of the N rows gets floor(n m / N) places, and the places left over go one each to the labels with the
    largest remainders (Hamilton's method), so every label is within one place of its exact share.

    Args:
        labels: Label of each row.
        n: Rows to draw, 0 to ``len(labels)``.
        generator: Source of chance.

    Returns:
        n positions in ascending order.

    Raises:
        ValueError: If n is negative or larger than the number of rows.
    """
    if not 0 <= n <= len(labels):
        raise ValueError(f"n is {n}: {len(labels)} rows can give 0 to {len(labels)}.")
    if n == 0:
        return []
    sizes = Counter(labels)
    quota = {label: n * size // len(labels) for label, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda label: (-(n * sizes[label] % len(labels)), label))
    for label in by_remainder[: n - sum(quota.values())]:
        quota[label] += 1
    chosen: list[int] = []
    for position in torch.randperm(len(labels), generator=generator).tolist():
        if quota[labels[position]] > 0:
            quota[labels[position]] -= 1
            chosen.append(position)
    return sorted(chosen)


def few_shot(
    examples: Sequence[Example], shots: int, generator: torch.Generator
) -> tuple[list[Example], list[Example]]:
    """Draw ``shots`` rows of each label; both parts keep the rows' order.

    Args:
        examples: The rows.
        shots: Rows of each label, at least 1.
        generator: Source of chance.

    Returns:
        The rows drawn, and the rest.

    Raises:
        ValueError: If a label has fewer rows.
    """
    sizes = Counter(example.label for example in examples)
    label, least = min(sizes.items(), key=lambda size: size[1])
    if shots > least:
        raise ValueError(f"shots={shots}, but label {label} has only {least} train rows; ask for at most so many.")
    left = dict.fromkeys(sizes, shots)
    taken = set()
    for position in torch.randperm(len(examples), generator=generator).tolist():
        if left[examples[position].label] > 0:
            left[examples[position].label] -= 1
            taken.add(position)
    inside = [example for position, example in enumerate(examples) if position in taken]
    return inside, [example for position, example in enumerate(examples) if position not in taken]


def carve(examples: Sequence[Example], n: int, generator: torch.Generator) -> tuple[list[Example], list[Example]]:
    """Take a stratified sample of n out of the rows; both parts keep the rows' order.

    Args:
        examples: The rows.
        n: Rows to take.
        generator: Source of chance.

    Returns:
        The n rows taken, and the rest.
    """
    taken = set(stratified_sample([example.label for example in examples], n, generator))
    inside = [example for position, example in enumerate(examples) if position in taken]
    outside = [example for position, example in enumerate(examples) if position not in taken]
    return inside, outside


def split_train(
    examples: Sequence[Example], *, rows: int | None, fraction: float, seed: int, subset: Subset, own_choose: bool
) -> tuple[list[Example], list[Example]]:
    """Divide the training rows into those trained on and those for choosing.

    The part for choosing is ``fraction`` of the rows trained on, taken from the rows left over where there are enough; with
    all rows in use it is ``fraction`` of them. So ``rows=1000`` trains on 1000 rows if the data hold that many more.

    Args:
        examples: All training rows.
        rows: Rows to train on, or None for all.
        fraction: Size of the part for choosing relative to the rows trained on; 0 for none.
        seed: The run's seed.
        subset: ``random``: stratified and drawn with the seed; ``first``: the first rows.
        own_choose: The data have a split for choosing: none is carved out.

    Returns:
        Rows to train on and rows for choosing, each in the data's order.
    """
    total = len(examples)
    wanted = total if rows is None else min(rows, total)
    choose = 0 if own_choose else round(fraction * wanted)
    if wanted + choose > total:
        choose = 0 if own_choose else round(fraction * total)
        wanted = min(wanted, total - choose)
    if subset == "first" and rows is not None:
        train, rest = list(examples[:wanted]), list(examples[wanted:])
        return train, carve(rest, choose, generator_at("choose", seed))[0]
    used, rest = carve(examples, wanted, generator_at("train", seed))
    return used, carve(rest, choose, generator_at("choose", seed))[0]


def take_evaluation(examples: Sequence[Example], *, rows: int | None, subset: Subset) -> list[Example]:
    """At most ``rows`` rows of an evaluation split: the same ones for every seed, so that runs compare row by row.

    Args:
        examples: All rows of the split.
        rows: Rows to take, or None for all.
        subset: ``random``: stratified; ``first``: the first rows.

    Returns:
        The rows taken, in the data's order.
    """
    if rows is None or rows >= len(examples):
        return list(examples)
    if subset == "first":
        return list(examples[:rows])
    return carve(examples, rows, generator_at("evaluation"))[0]
