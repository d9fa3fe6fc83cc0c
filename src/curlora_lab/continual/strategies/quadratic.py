"""A quadratic pull back to where parameters were: what EWC and MAS have in common."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curlora_lab.continual.strategies.gradients import values_of


@dataclass
class Pull:
    """``Δᵀ M Δ`` with ``Δ = θ − θ*``, summed over parameters.

    Args:
        anchor: θ* of each parameter.
        importance: M of each parameter: its diagonal, in the parameter's shape, or a whole matrix over its flattened entries.
    """

    anchor: dict[str, Tensor]
    importance: dict[str, Tensor]

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """The value for the parameters as they are now, a scalar in float32."""
        terms = []
        for name, parameter in parameters.items():
            importance, anchor = self._at(name, parameter)
            away = parameter.float() - anchor
            if importance.shape == away.shape:
                terms.append((importance * away.square()).sum())
            else:
                terms.append(away.flatten() @ importance @ away.flatten())
        return torch.stack(terms).sum()

    def _at(self, name: str, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """Importance and anchor where the parameter is; moved once, not at every step."""
        if self.anchor[name].device != parameter.device:
            self.anchor[name] = self.anchor[name].to(parameter.device)
            self.importance[name] = self.importance[name].to(parameter.device)
        return self.importance[name], self.anchor[name]

    def add(self, importance: Mapping[str, Tensor], *, decay: float) -> dict[str, Tensor]:
        """``decay · M`` plus another importance."""
        return {name: decay * self.importance[name].to(new.device) + new for name, new in importance.items()}


def pull_to(
    parameters: Mapping[str, nn.Parameter],
    importance: Mapping[str, Tensor],
    *,
    normalize: bool,
    earlier: Pull | None,
    decay: float,
) -> Pull:
    """The pull to where the parameters are now, after a task.

    Args:
        parameters: θ.
        importance: the task's, of each parameter.
        normalize: whether the task's importance is scaled, see :func:`normalised`.
        earlier: the pull of the tasks before, whose importance is carried along; ``None`` for none.
        decay: what stays of that importance.
    """
    if normalize:
        importance = normalised(importance, {name: parameter.numel() for name, parameter in parameters.items()})
    if earlier is not None:
        importance = earlier.add(importance, decay=decay)
    return Pull({name: value.float() for name, value in values_of(parameters).items()}, dict(importance))


def normalised(importance: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """An importance scaled so that its diagonal is 1 on average over all entries of all parameters; zero stays zero.

    Args:
        importance: diagonals or matrices, by parameter.
        sizes: entries of each parameter.
    """
    diagonals = [_diagonal(value, sizes[name]).double().sum() for name, value in importance.items()]
    mean = float(torch.stack(diagonals).sum() / sum(sizes[name] for name in importance))
    return {name: value / mean if mean > 0 else value for name, value in importance.items()}


def _diagonal(value: Tensor, size: int) -> Tensor:
    return value if value.numel() == size else value.diagonal()


def pulls_to_state(pulls: Mapping[str, Pull]) -> dict[str, Tensor]:
    """Tensors named ``<key>/anchor/<parameter>`` and ``<key>/importance/<parameter>``."""
    return {
        f"{key}/{kind}/{name}": value
        for key, pull in pulls.items()
        for kind, values in (("anchor", pull.anchor), ("importance", pull.importance))
        for name, value in values.items()
    }


def pulls_from_state(
    state: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], *, matrices: bool = False
) -> dict[str, Pull]:
    """Read what :func:`pulls_to_state` wrote.

    Args:
        state: the tensors.
        parameters: the parameters that are trained now.
        matrices: whether whole matrices are expected, not diagonals.

    Raises:
        ValueError: the state is of another strategy or of other parameters.
    """
    found: dict[str, Pull] = {}
    for path, value in state.items():
        key, _, rest = path.partition("/")
        kind, _, name = rest.partition("/")
        parameter = parameters.get(name)
        shapes: dict[str, tuple[int, ...]] = {}
        if parameter is not None:
            size, shape = parameter.numel(), tuple(parameter.shape)
            shapes = {"anchor": shape, "importance": (size, size) if matrices else shape}
        if shapes.get(kind) != tuple(value.shape):
            raise ValueError(
                f"the stage holds {path} of shape {tuple(value.shape)}, which is no state of this strategy over the parameters "
                f"that are trained here (expected {shapes.get(kind, 'nothing of that name')}); it was made by other settings."
            )
        pull = found.setdefault(key, Pull({}, {}))
        (pull.anchor if kind == "anchor" else pull.importance)[name] = value.float().clone()
    for key, pull in found.items():
        missing = sorted((parameters.keys() - pull.anchor.keys()) | (parameters.keys() - pull.importance.keys()))
        if missing:
            raise ValueError(f"the stage's state of {key} lacks {', '.join(missing[:3])}; it is not whole.")
    return found
