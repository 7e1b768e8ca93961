"""The table of translations of `torch.onnx`, read once in a process, for tests and for the campaign."""

from __future__ import annotations

import copy
from typing import Any


def read_once() -> tuple[type, str, staticmethod[..., Any]]:
    """What to set, and where, so that exports share the table that each reads, in a quarter of its time.

    If torch's table is another than expected it is read anew. Returns the arguments of `setattr`.
    """
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry
    make, made = registry.from_torchlib, dict[str, Any]()

    def from_torchlib(**options: Any) -> Any:
        key = repr(options)
        if key not in made:
            made[key] = make(**options)
        table = made[key]
        if not isinstance(getattr(table, "functions", None), dict):
            return make(**options)
        own = copy.copy(table)  # an export adds its own translations
        own.functions = {target: list(functions) for target, functions in table.functions.items()}
        return own

    return registry, "from_torchlib", staticmethod(from_torchlib)
