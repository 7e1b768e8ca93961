"""Whether a file's tensors are those of the model, told in one line with the file's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError
from .converted import ORIGINAL
from .messages import some, unfit
from .tensors import FLOATS, TensorInfo


@dataclass
class Findings:
    """What is wrong with a set of tensors.

    Attributes:
        original: a tensor's name -> the file's own, for messages.
        hint: what else to check than the weights, such as an entry of config.json.
    """

    original: Callable[[str], str] = str
    hint: str | None = None
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def compare(
        self,
        expected: Mapping[str, Sequence[int]],
        found: Mapping[str, TensorInfo],
        file_names: Mapping[str, str],
        name_of: Callable[[str], str],
    ) -> None:
        """Adds what differs.

        Args:
            expected: canonical name -> shape.
            found: file name -> what the file holds.
            file_names: canonical name -> file name, of all tensors found.
            name_of: canonical name -> the name that the file would give it.
        """
        for canonical, shape in expected.items():
            name = file_names.get(canonical)
            if name is None or name not in found:
                self.missing.append(self.original(name or name_of(canonical)))
            elif found[name].dtype not in FLOATS:
                self.dtypes.append(f"{self.original(name)} ({found[name].dtype})")
            elif found[name].shape != tuple(shape):
                self.shapes.append(f"{self.original(name)} is {found[name].shape}, not {tuple(shape)}")
        self.surplus += [self.original(name) for canonical, name in file_names.items() if canonical not in expected]

    def examine(self, name: str, tensor: Tensor) -> None:
        """Adds a tensor that was read, if NaN or infinity stands in it."""
        low, high = torch.aminmax(tensor)  # both become NaN where one stands; and no mask is made
        if not (torch.isfinite(low) and torch.isfinite(high)):
            self.values.append(self.original(name))

    def error(self, source: str, seems: str) -> CheckpointError | None:
        """The one error that says it all, or None where nothing is wrong."""
        parts = (
            ("missing", self.missing),
            ("surplus", self.surplus),
            ("of wrong shape", self.shapes),
            ("not floating point", self.dtypes),
            ("with NaN or infinity", self.values),
        )
        told = [f"{len(names)} {what} ({some(names)})" for what, names in parts if names]
        if not told:
            return None
        what = f"has unfit tensors: {', '.join(told)}; it seems to be {seems}"
        if self.values:
            mend = "download it again; if they are in the original too, give another checkpoint"
        elif self.dtypes:
            mend = f"{ORIGINAL}, in float32, float16 or bfloat16"
        else:
            mend = "give another checkpoint, or all of this one"
        return unfit(source, what, f"{self.hint}, or {mend}" if self.hint else mend)


def shapes_of(module: nn.Module) -> dict[str, Sequence[int]]:
    """Names and shapes of what a checkpoint must hold: all but BatchNorm's counters."""
    return {name: t.shape for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked")}
