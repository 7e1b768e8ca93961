"""The connector's tensors in a checkpoint: LLaVA's `mm_projector`, transformers' `multi_modal_projector`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch

from ..config import MAX_CONNECTOR_LAYERS, ConnectorConfig
from ..connector import Connector
from .forms import PublicForm
from .tensors import TensorInfo

MAX_WIDTH = 1 << 20
"""Widths of a language model believed; a damaged one beyond shows up as a tensor of wrong shape."""


@dataclass
class ConnectorAssignment:
    """A connector on the meta device, the file's names by canonical ones, and what the file holds.

    `kind` is what the tensors' names speak for, whatever config.json says.
    """

    module: Connector
    names: dict[str, str]
    found: dict[str, TensorInfo]
    name_of: Callable[[str], str]
    kind: str


def assign_connector(
    form: PublicForm,
    names: Collection[str],
    describe: Callable[[Iterable[str]], dict[str, TensorInfo]],
    kind: str | None,
    in_channels: int,
) -> ConnectorAssignment | None:
    """The connector that the file holds, or None where it holds none.

    Args:
        form: the checkpoint's form.
        names: every tensor's name in the file.
        describe: looks up shapes and dtypes.
        kind: LLaVA's `mm_projector_type` where config.json tells it; else the names tell.
        in_channels: channels of the encoder's tokens.

    Raises:
        ConfigError: a kind that is not known, or an identity between different widths.
    """
    prefix, own = next(((p, own) for p in form.connector if (own := [n for n in names if n.startswith(p)])), ("", []))
    if not own:
        if kind != "identity" or not form.connector:
            return None
        identity = Connector(ConnectorConfig("identity", in_channels, in_channels))
        return ConnectorAssignment(identity, {}, {}, lambda canonical: canonical, "identity")
    parts = [name[len(prefix) :] for name in own]
    by_names = _kind(parts)
    kind = kind or by_names
    found = describe(own)
    widths = Counter(shape[0] for n in own if n in found and (shape := found[n].shape) and 0 < shape[0] <= MAX_WIDTH)
    # Every layer puts out the LLM's width; the first layer's input alone has another.
    width = widths.most_common(1)[0][0] if widths else in_channels
    with torch.device("meta"):
        module = Connector(ConnectorConfig(kind, in_channels, in_channels if kind == "identity" else width))
    to_canonical, to_own = _spelling(form, kind)
    return ConnectorAssignment(
        module,
        {to_canonical(part): prefix + part for part in parts},
        found,
        lambda canonical: prefix + to_own(canonical),
        by_names,
    )


def canonical_names(form: PublicForm, parts: Collection[str]) -> dict[str, str]:
    """The form's names within its connector -> `Connector`'s."""
    translate, _ = _spelling(form, _kind(parts))
    return {part: translate(part) for part in parts}


def _kind(parts: Collection[str]) -> str:
    if "weight" in parts:
        return "linear"
    layers = {int(m[1]) // 2 + 1 for part in parts if (m := re.match(r"(\d{1,3})\.", part))}
    # A damaged index beyond shows up as a surplus tensor.
    return f"mlp{max((n for n in layers if n <= MAX_CONNECTOR_LAYERS), default=2)}x_gelu"


def _spelling(form: PublicForm, kind: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """(the form's names -> `Connector`'s, and back); what is no name of the form is marked surplus."""
    if form.name == "transformers":  # linear_1, linear_2 -> 0, 2
        table = {"linear_1": "0", "linear_2": "2"}
    elif kind == "linear":  # a bare nn.Linear in LLaVA
        table = {"": "0"}
    else:
        table = {str(i): str(i) for i in range(0, 2 * MAX_CONNECTOR_LAYERS, 2)}
    back = {ours: theirs for theirs, ours in table.items()}

    def translate(name: str, table: dict[str, str]) -> str:
        layer, _, leaf = name.rpartition(".")
        return f"{table[layer]}.{leaf}".removeprefix(".") if layer in table else f"?{name}"

    return lambda name: translate(name, table), lambda name: translate(name, back)
