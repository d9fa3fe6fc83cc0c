"""The order of tasks: as listed, a permutation by its number, or names."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def ordered(names: Sequence[str], order: int | Sequence[str] | None) -> list[str]:
    """Names in the order asked for.

    Args:
        names: All names as they are listed.
        order: ``None``: as listed. A number: that permutation in lexicographic order of positions, 0 being the list itself and
            n! - 1 its reverse. Names: exactly these, each once.

    Raises:
        ValueError: There is no such permutation, or the names are others.
    """
    if order is None:
        return list(names)
    if isinstance(order, bool) or not isinstance(order, int | list | tuple):
        raise ValueError(f"order={order!r} is neither null, a number nor a list of names.")
    if not isinstance(order, int):
        if sorted(order) != sorted(names):
            raise ValueError(f"order={list(order)} must name each task once: {', '.join(names)}.")
        return list(order)
    count = math.factorial(len(names))
    if not 0 <= order < count:
        raise ValueError(f"order={order}, but {len(names)} tasks have the {count} orders 0 to {count - 1}.")
    left, found = list(names), []
    while left:
        position, order = divmod(order, math.factorial(len(left) - 1))
        found.append(left.pop(position))
    return found


def scenario_faults(plain: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What scenario, order and repeats ask of each other and of the rest.

    Args:
        plain: The resolved configuration.
        tasks: The nodes of the tasks by path, as listed.
    """
    names = [str(node.get("name")) for node in tasks.values()]
    scenario, repeats = plain.get("scenario"), plain.get("repeats")
    if scenario not in ("sequential", "joint", "independent"):
        yield f"scenario={scenario!r} is unknown; choose sequential, joint or independent."
    elif scenario != "sequential" and repeats != 1:
        yield f"repeats={repeats} goes through a sequence again, but scenario={scenario} is none; set repeats=1."
    if isinstance(repeats, int) and repeats < 1:
        yield f"repeats={repeats} must be at least 1."
    if scenario == "joint":
        yield from _joint_faults(plain, tasks)
    try:
        ordered(names, plain.get("order"))
    except ValueError as error:
        yield str(error)
    strategy = plain.get("strategy")
    target = str(strategy.get("_target_", "")) if isinstance(strategy, dict) else ""
    if scenario in ("joint", "independent") and not target.endswith((".Strategy", ".Anchor")):
        yield (
            f"scenario={scenario} learns no task after another, so none can be forgotten; set strategy=none, or "
            "strategy=anchor to keep the language model intact."
        )
    for path, node in tasks.items() if plain.get("shots") is not None else ():
        if "shots" not in (node.get("data") or {}):
            yield f"shots={plain['shots']} draws rows of each class, and {path} has no classes; use train_rows."
    if plain.get("shots") is not None and plain.get("train_rows") is not None:
        yield f"shots={plain['shots']} and train_rows={plain['train_rows']} both say how many rows are trained on; keep one."


def _joint_faults(plain: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One stage trains all tasks: it has one number of epochs, one batch size and one schedule."""
    for key, usual, reset in (
        ("epochs", plain.get("epochs"), "null"),
        ("batch_size", plain.get("batch_size"), "null"),
        ("scheduled", True, "true"),
    ):
        found = {path: usual if (own := node.get(key)) is None else own for path, node in tasks.items()}
        if len(set(map(str, found.values()))) > 1:
            listed = ", ".join(f"{path}.{key}={str(value).lower()}" for path, value in found.items())
            advice = " ".join(f"{path}.{key}={reset}" for path in found if found[path] != usual)
            yield (
                f"scenario=joint trains all tasks in one stage, which has one value of {key}, but {listed}; give all of them "
                f"the same, for example {advice}."
            )
