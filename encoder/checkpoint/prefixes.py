"""Prefixes that trainers, compilers and adapters put before a checkpoint's own tensor names.

`module.` (DataParallel, DistributedDataParallel, DeepSpeed), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.`
(FSDP), `_forward_module.` (Lightning Fabric), `base_model.model.` (peft), `model.` (Lightning), in any nesting.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from .forms import APPLE_ROOTS, FORMS, TIMM_ROOTS

INNER = frozenset({"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Wrappers of any module, so found in the middle of a name too."""
OUTER = INNER | {"base_model", "model", "_model", "net", "state_dict"}
"""Wrappers of the whole model."""

LANGUAGE_MODEL = (
    "model.language_model.", "language_model.", "model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.",
)  # fmt: skip
"""What a language model's tensor names begin with, in either form that has one."""

_COMPANIONS = (*(prefix for form in FORMS for prefix in form.connector), *LANGUAGE_MODEL)
_EMA = re.compile(r"(?:^|[._])(?:ema|swa|averaged)(?:$|[._])", re.IGNORECASE)
_IGNORED = "n_averaged"  # the counter of torch's AveragedModel, beside `module.`


def is_ema(text: str) -> bool:
    """Whether a key, prefix or file name says that it is of averaged weights: `state_dict_ema`, `ema.`, `swa_state`."""
    return _EMA.search(text) is not None


@dataclass(frozen=True)
class Unwrapped:
    """The names of a file without what was put around them.

    Attributes:
        names: plain name -> the file's. A name that lacks the prefix of the others is kept as `?` and itself, so that
            it shows up as surplus.
        prefix: what was removed from the front, or would have to be (`unknown`).
        unknown: whether `prefix` is none of the known ones: nothing was removed then.
        twins: other prefixes under which the file has an encoder, except averaged weights.
        averaged: prefixes of averaged (EMA) encoders, which were left out.
        repeated: names that two of the file's would have.
    """

    names: dict[str, str]
    prefix: str = ""
    unknown: bool = False
    twins: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    repeated: list[str] = field(default_factory=list)


def unwrap(names: Collection[str]) -> Unwrapped:
    """Removes known prefixes if an encoder is found behind them; else the names come back as they are."""
    cleaned = {name: _without_inner(name) for name in names}
    towers = _towers(cleaned.values())
    if not towers:
        return Unwrapped({name: name for name in names})
    most = max(len(tower.tensors) for tower in towers)
    large = [tower for tower in towers if 2 * len(tower.tensors) >= most]
    plain = [tower for tower in large if not is_ema(tower.lead)] or large
    main = min(plain, key=lambda tower: (-len(tower.tensors), len(tower.lead)))
    # Twins have the same tensors; two parts of one encoder under two prefixes have not.
    twins = [t for t in large if t is not main and 2 * len(t.tensors & main.tensors) >= len(main.tensors)]
    averaged = tuple(tower.lead for tower in twins if is_ema(tower.lead))
    others = tuple(tower.lead for tower in twins if not is_ema(tower.lead))
    prefix, known = _outer(main.lead, main.apple, cleaned.values())
    if not known:
        return Unwrapped({name: name for name in names}, prefix, unknown=True, twins=others)
    found = Unwrapped({}, prefix, twins=others, averaged=averaged)
    for name, own in cleaned.items():
        if (averaged and own.startswith(averaged)) or own == _IGNORED:
            continue
        bare = own.removeprefix(prefix) if own.startswith(prefix) else f"?{name}"
        if bare in found.names:
            found.repeated.append(bare)
        found.names[bare] = name
    return found


def _without_inner(name: str) -> str:
    """The name without wrappers of single modules; the segments of whole models at its front stay."""
    if not any(wrapper in name for wrapper in INNER):
        return name
    parts = name.split(".")
    front = next((at for at, part in enumerate(parts) if part not in OUTER), len(parts))
    return ".".join(parts[:front] + [part for part in parts[front:] if part not in INNER])


@dataclass(frozen=True)
class _Tower:
    """What stands before FastViTHD's own names, whether those are Apple's, and the names."""

    lead: str
    apple: bool
    tensors: frozenset[str]


def _towers(names: Iterable[str]) -> list[_Tower]:
    """The FastViTHD encoders of a file, of each vocabulary and behind each prefix."""
    found: dict[tuple[str, bool], set[str]] = {}
    patterns = {True: _pattern(APPLE_ROOTS), False: _pattern(TIMM_ROOTS)}
    for name in names:
        for apple, pattern in patterns.items():
            if match := pattern.search(name):
                found.setdefault((name[: match.start()], apple), set()).add(name[match.start() :])
    last = {True: "network.10.", False: "stages.4."}  # the fifth stage, which no other FastViT has
    return [
        _Tower(lead, apple, frozenset(own))
        for (lead, apple), own in found.items()
        if any(name.startswith(last[apple]) for name in own)
    ]


def _pattern(roots: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![^.])(?:{'|'.join(map(re.escape, roots))})")


def _outer(lead: str, apple: bool, names: Collection[str]) -> tuple[str, bool]:
    """What of `lead` is no form's own prefix, and whether that is a known wrapper."""
    choices = [
        lead.removesuffix(prefix)
        for form in FORMS if form.apple == apple
        for prefix in form.prefixes if lead == prefix or lead.endswith(f".{prefix}" if prefix else "")
    ]  # fmt: skip
    known = [outer for outer in choices if all(part in OUTER for part in outer.split(".")[:-1])]
    if not known:
        return min(choices, key=len), False

    def companions(outer: str) -> int:
        starts = tuple(outer + companion for companion in _COMPANIONS)
        return sum(name.startswith(starts) for name in names)

    return max(known, key=lambda outer: (companions(outer), -len(outer))), True
