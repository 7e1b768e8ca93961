"""The layers that an engine was compiled to, from its inspector or from the log of its build.

An inspector needs the engine loaded, and so a GPU. A build with detailed profiling verbosity writes the same facts to
its log, one layer a line, which is how an engine built without a GPU is described.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgspec

from ...core.dtypes import BITS
from ...core.input_file import parse_json
from ...core.records import Record, parse

MAX_ELEMENTS = 1 << 48
"""Of a tensor; no GPU holds more."""
NAMES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16"}
"""Format as TensorRT writes it -> our name, if it has another."""
PRODUCTS = ("Conv", "MatMul", "Gemm", "ConvTranspose")
GENERATED = re.compile(r"_*myl_([A-Z][A-Za-z0-9]*?)_myl\d")
"""A kernel that TensorRT wrote itself, named after what it does: `__myl_CastMulFc_myl0_41`."""
MULTIPLIES = frozenset({"Corr", "Conv", "Fc", "Gemm", "Matm", "Mma"})
MOVES = frozenset({"Resh", "Tran", "Move", "Conc", "Slic", "Cast", "Copy", "Reformat", "Gath", "Pad"})
"""What a generated kernel is named after when all it does is lay values out anew."""


@dataclass(frozen=True)
class LayerTensor:
    """One input, output or constant of a layer: TensorRT's name, `fp16` and the like, and its sizes."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape) if all(size >= 0 for size in self.shape) else 0

    @property
    def bytes(self) -> int:
        """Its size; 0 where a size is known only at run time."""
        return self.elements * BITS.get(self.dtype, 32) // 8


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: a kernel, or a few that TensorRT starts together.

    Attributes:
        name, kind: TensorRT's own.
        inputs, outputs, constants: its tensors.
        nodes: names of the ONNX nodes that went into it.
    """

    name: str
    kind: str
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    nodes: tuple[str, ...]

    @property
    def products(self) -> tuple[str, ...]:
        """The convolutions and matrix products that it computes; what only adds a bias to one has none."""
        if self._steps and not self._steps & MULTIPLIES:
            return ()
        return tuple(node for node in self.nodes if re.sub(r"_\d+$", "", node.rpartition("/")[2]) in PRODUCTS)

    @property
    def _steps(self) -> set[str]:
        """What a kernel that TensorRT wrote itself does; empty for any other."""
        match = GENERATED.match(self.name)
        return set(re.findall(r"[A-Z][a-z0-9]*", match[1])) if match else set()

    @property
    def precision(self) -> str:
        """Of a product: the wider of its two operands. Of anything else: of its widest output.

        The operands are the first input, and the largest constant (the weight) or else the second input.
        """
        matrices = [c for c in self.constants if c.elements > max(c.shape, default=0)]
        if self.products and self.inputs:
            weights = sorted(matrices, key=lambda c: -c.elements)[:1] or list(self.inputs[1:2])
            return _widest([self.inputs[0], *weights])
        return _widest(self.outputs or self.inputs)

    @property
    def moves_only(self) -> bool:
        """Whether it computes nothing, and lays values out anew or changes their type."""
        if self.kind.lower() in ("reformat", "noop", "shuffle", "copy", "cast"):
            return True
        return bool(self._steps) and self._steps <= MOVES

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"precision": self.precision}


class _ReportTensor(Record, frozen=True, kw_only=True):
    name: str = msgspec.field(default="", name="Name")
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)], ...], msgspec.Meta(max_length=16)] = (
        msgspec.field(default=(), name="Dimensions")
    )
    dtype: str = msgspec.field(default="", name="Datatype")
    format: str = msgspec.field(default="", name="Format/Datatype")


_Tensors = tuple[_ReportTensor | str | float | bool | None, ...] | None


class _ReportLayer(Record, frozen=True, kw_only=True):
    name: str = msgspec.field(default="", name="Name")
    kind: str = msgspec.field(default="", name="LayerType")
    inputs: _Tensors = msgspec.field(default=None, name="Inputs")
    outputs: _Tensors = msgspec.field(default=None, name="Outputs")
    constants: _Tensors = msgspec.field(default=None, name="Constants")
    metadata: str = msgspec.field(default="", name="Metadata")


class _Report(Record, frozen=True, kw_only=True):
    """What TensorRT's inspector writes."""

    layers: tuple[_ReportLayer | str, ...] = msgspec.field(default=(), name="Layers")


def _widest(tensors: Iterable[LayerTensor]) -> str:
    return max((t.dtype for t in tensors), key=lambda dtype: BITS.get(dtype, 0), default="none")


def from_log(lines: Iterable[str]) -> list[EngineLayer]:
    """Layers of the lines that a build writes under "Engine Layer Information"; other lines are passed over."""
    return [_from_line(line) for line in lines if re.match(r"\s*Name: .*, LayerType: ", line)]


def from_inspector(text: str) -> list[EngineLayer]:
    """Layers of `EngineInspector.get_engine_information` in JSON; without detailed verbosity they are names alone.

    Raises ValueError for a text of another form.
    """
    layers = []
    for entry in parse(parse_json(text), _Report).layers:
        if isinstance(entry, str):
            layers.append(EngineLayer(entry, "", (), (), (), tuple(_nodes(entry)) or (entry,)))
            continue
        layers.append(
            EngineLayer(
                entry.name,
                entry.kind,
                _json_tensors(entry.inputs),
                _json_tensors(entry.outputs),
                _json_tensors(entry.constants),
                tuple(_nodes(entry.metadata or entry.name)),
            )
        )
    return layers


def _from_line(line: str) -> EngineLayer:
    def part(name: str, until: str) -> str:
        match = re.search(rf"\b{name}: (.*?)(?:, (?:{until}):|$)", line)
        return match[1].strip() if match else ""

    return EngineLayer(
        part("Name", "LayerType"),
        part("LayerType", "Inputs"),
        _line_tensors(part("Inputs", "Constants|Outputs")),
        _line_tensors(part("Outputs", "Constants|ParameterType|TacticName|StreamId|Metadata")),
        _line_tensors(part("Constants", "Outputs")),
        tuple(_nodes(part("Metadata", "$^") or line)),
    )


def _line_tensors(text: str) -> tuple[LayerTensor, ...]:
    pattern = r"Name: ([^,]*), (?:Location: \w+, )?Dimensions: \[((?:-?\d{1,12},?){0,16})\](.*?)(?=\}|$)"
    found = re.findall(pattern, text)
    return tuple(_tensor(name, [int(d) for d in dims.split(",") if d], rest) for name, dims, rest in found)


def _json_tensors(entries: Iterable[Any] | None) -> tuple[LayerTensor, ...]:
    return tuple(
        _tensor(entry.name, entry.shape, f"Datatype: {entry.dtype}, Format: {entry.format}")
        for entry in entries or ()
        if isinstance(entry, _ReportTensor)
    )


def _tensor(name: str, dims: Iterable[int], rest: str) -> LayerTensor:
    """A tensor whose type stands as `Datatype: Half`, or within a format such as `Row major linear FP16 format`."""
    match = re.search(r"Datatype: (\w+)", rest) or re.search(
        r"\b(FP32|FP16|BF16|FP8|INT8|INT32|INT64|BOOL|UINT8)\b", rest, re.I
    )
    dtype = match[1].lower() if match else "unknown"
    tensor = LayerTensor(name, NAMES.get(dtype, dtype), tuple(dims))
    if tensor.elements > MAX_ELEMENTS:
        raise ValueError(f"{name[:100]} has the shape {list(tensor.shape)}")
    return tensor


def _nodes(text: str) -> list[str]:
    """ONNX nodes named in a layer's metadata: `[ONNX Layer: stem.2.act/Gelu]…`, each once, in order."""
    return list(dict.fromkeys(name for name in re.findall(r"\[ONNX Layer: ([^\]]*)\]", text)))
