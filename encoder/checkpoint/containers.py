"""What trainers keep around a state dict in a .pt file, and which state dict of several is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .forms import detect
from .messages import some, unfit
from .prefixes import is_ema, unwrap

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params", "net")
"""Keys under which trainers keep the named tensors of a .pt file."""

READ_BY_TIMM = ("state_dict_ema", "model_ema")
"""Keys of averaged weights that timm's `load_state_dict` prefers to the others."""


@dataclass(frozen=True)
class Contents:
    """The named values of a .pt file, and what a person has to know of others that it holds."""

    tensors: dict[str, Any]
    notice: str | None = None


def contents(source: str, file: str, content: object) -> Contents:
    """Finds the state dict in what `torch.load` gave.

    Where averaged (EMA) weights stand beside the others, timm's names are read as timm reads them, averaged; all other
    forms' own loaders read the plain ones. Either way the notice says so.

    Raises:
        CheckpointError: no named tensors, or several state dicts of which none is known to be the wanted one.
    """
    averaged: dict[str, Any] = {}
    path = ""
    for key, holder in _levels(content):
        averaged |= {
            k: v
            for k, v in holder.items()
            # A tensor by itself is one of a flat file's, whose prefixes `unwrap` tells apart.
            if isinstance(k, str) and is_ema(k) and k != key and not isinstance(v, Tensor) and _holds(v)
        }
        if key is not None:
            path, content = key, holder[key]
    notice = None
    if averaged:
        key = next((k for k in READ_BY_TIMM if k in averaged), next(iter(averaged)))
        if not path or (key in READ_BY_TIMM and isinstance(averaged[key], Mapping) and _is_timm(content)):
            beside = f"beside {path!r}; the averaged ones were read, as timm does" if path else "alone; they were read"
            notice = f"{file} holds averaged (EMA) weights under {key!r} {beside}."
            content = _innermost(averaged[key])
        else:
            notice = (
                f"{file} holds averaged (EMA) weights under {key!r} beside {path!r}; {path!r} was read. "
                f"To use the averaged ones, save them alone."
            )
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        found = "no named tensors" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise unfit(source, f"{file} holds {found}", "give a file with a state dict")
    inner = [key for key, value in content.items() if isinstance(value, Mapping) and _holds(value)]
    if inner and not any(isinstance(value, Tensor) for value in content.values()):
        raise unfit(source, f"{file} holds its tensors under {some(inner)}", "save the wanted state dict alone")
    return Contents(dict(content), notice)


def _levels(content: object) -> Iterator[tuple[str | None, Mapping[Any, Any]]]:
    """Each mapping on the way to the state dict, and the key to the next; None in the last."""
    seen: set[int] = set()  # a pickle can hold a mapping that is within itself
    while isinstance(content, Mapping) and id(content) not in seen:
        seen.add(id(content))
        key = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        yield key, content
        content = content[key] if key is not None else None


def _innermost(content: object) -> object:
    for key, holder in _levels(content):
        content = holder if key is None else holder[key]
    return content


def _holds(value: object) -> bool:
    """Whether tensors are in it, at any depth of mappings."""
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.dim() > 0:
                return True
        elif isinstance(value, (list, tuple)):
            if any(isinstance(inner, Tensor) for inner in value):
                return True
        elif isinstance(value, Mapping) and id(value) not in seen:  # see `_levels`
            seen.add(id(value))
            waiting += value.values()
    return False


def _is_timm(content: object) -> bool:
    if not isinstance(content, Mapping):
        return False
    naming = detect(unwrap([name for name in content if isinstance(name, str)]).names)
    return naming is not None and naming.form.name == "timm"
