"""Whether plain values fit the signature of what takes them, and what to say where they do not."""

import difflib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pydantic

#: How a kind of pydantic error is said; ``{}`` is what its context holds.
WORDS: dict[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "sequence_str": "a list",
}

#: How a container's abstract class is said.
ABSTRACT = {**dict.fromkeys(("Collection", "Sequence", "Iterable"), "a list"), "Mapping": "a mapping"}

#: Arguments whose annotation is narrower than what they take: PEFT says int and divides by any number.
LOOSE = ("lora_alpha",)


class Unset:
    """Stands for a value that is missing or does not resolve, so that the rest can still be checked."""

    def __repr__(self) -> str:
        return "<unset>"


UNSET = Unset()


def locate(name: str) -> Callable[..., Any]:
    """What a dotted name stands for.

    Args:
        name: For example ``torch.optim.AdamW``.

    Raises:
        ValueError: There is no such thing; says how far the name leads and what is close.
        ImportError: A module on the way can't be imported.
    """
    parts = str(name).split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise  # a package that this module needs is not installed
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                public = [word for word in dir(found) if not word.startswith("_")]
                raise ValueError(f"{module_name} has no {part!r}.{meant(part, public)}")
            found = getattr(found, part)
        if not callable(found):
            raise ValueError("it can't be called; name a class or a function.")
        return found
    raise ValueError(f"there is no module {parts[0]!r}; write package.module.Name.")


def parameters_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of a callable; a class that passes ``**arguments`` on is read together with its bases' ``__init__``.

    Args:
        target: A function or class.

    Returns:
        Parameters by name, without ``self``.

    Raises:
        ValueError: It has no readable signature.
        TypeError: It can't be called.
    """
    parameters = dict(inspect.signature(target).parameters)
    if not inspect.isclass(target):
        return parameters
    for base in inspect.getmro(target)[1:]:
        catch_all = [name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD]
        if not catch_all or "__init__" not in vars(base) or base is object:
            continue
        del parameters[catch_all[0]]
        inherited = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        parameters = {**{name: p for name, p in inherited.items() if name != "self"}, **parameters}
    return parameters


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a callable's parameters; those that can't be read are left out."""
    owners: list[Any] = [target]
    if inspect.isclass(target):
        owners = [base.__init__ for base in reversed(inspect.getmro(target)) if "__init__" in vars(base)]  # type: ignore[misc]
    hints: dict[str, Any] = {}
    for owner in owners:
        scope = vars(sys.modules[owner.__module__]) if getattr(owner, "__module__", None) in sys.modules else {}
        for name, annotation in (getattr(owner, "__annotations__", None) or {}).items():
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            try:  # one by one: a name that exists for type checkers alone must not hide the others
                hints |= typing.get_type_hints(holder, globalns=dict(scope))
            except (NameError, TypeError, AttributeError, SyntaxError):
                continue
    return hints


def argument_faults(
    where: str, target: Callable[..., Any], arguments: Mapping[str, Any], *, supplied: Mapping[str, str], partial: bool
) -> list[str]:
    """Hold arguments against a signature.

    Args:
        where: Dotted path of the node, for messages.
        target: What will be called.
        arguments: The node's arguments, plain values.
        supplied: Arguments that the run supplies itself, with what to use instead.
        partial: Whether more arguments follow at the call.

    Returns:
        One message a fault.
    """
    parameters = parameters_of(target)
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    hints = hints_of(target)
    faults = []
    for key, value in arguments.items():
        if key in supplied:
            faults.append(f"{where}.{key} has no effect here: {supplied[key]}.")
        elif key not in named and not accepts_any:
            faults.append(unknown_key(f"{where}.{key}", key, set(named) - set(supplied)))
        elif key not in LOOSE and (fault := value_fault(value, hints.get(key))):
            faults.append(f"{where}.{key}={value!r}: {fault}")
    if not partial:
        needed = [name for name, p in named.items() if p.default is p.empty and name not in {*arguments, *supplied}]
        faults += [
            f"{where}.{name} has no value, and nothing works without it; set {where}.{name}=..." for name in needed
        ]
    return faults


def value_fault(value: Any, hint: Any) -> str | None:
    """Why a plain value does not fit an annotation; ``None`` if it does or if that can't be told."""
    if hint is None or value is UNSET or (isinstance(value, dict) and "_target_" in value):
        return None
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
            hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True)
        )
    except (pydantic.errors.PydanticUserError, TypeError, NameError):
        return None
    try:
        adapter.validate_python(value, strict=isinstance(value, str | bool | int | float))
    except pydantic.ValidationError as error:
        found = error.errors()
        if isinstance(value, list | dict) and any(e["type"] in {"is_instance_of", "callable_type"} for e in found):
            return None  # built from this node at run time
        return _said(value, found)
    return None


def unknown_key(where: str, key: str, allowed: Iterable[str]) -> str:
    """The message for a key that nobody takes."""
    names = sorted(allowed)
    return f"{where} is unknown.{meant(key, names)} Allowed: {', '.join(names) or 'nothing'}."


def meant(word: Any, allowed: Iterable[str]) -> str:
    """``" Did you mean 'rank'?"`` if an allowed word is close, else nothing."""
    close = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _said(value: Any, found: Iterable[Any]) -> str:
    """Pydantic's errors in one sentence: the words to choose from, or the kinds of value that would do."""
    choices: list[str] = []
    kinds: list[str] = []
    for error in found:
        if error["type"] == "literal_error":
            choices += [word.strip().strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        elif error["type"] == "is_instance_of" and error["ctx"]["class"] in ABSTRACT:
            kinds.append(ABSTRACT[error["ctx"]["class"]])
        elif error["type"] not in {"is_instance_of", "callable_type"}:
            kinds.append(WORDS.get(error["type"], error["msg"][0].lower() + error["msg"][1:]))
    kinds = list(dict.fromkeys(kinds))
    if choices:
        also = f" (or {', '.join(kinds)})" if kinds else ""
        return f"choose one of {', '.join(dict.fromkeys(choices))}{also}.{meant(value, choices)}"
    return f"must be {' or '.join(kinds) or 'something else'}."
