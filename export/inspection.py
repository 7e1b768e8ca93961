"""What an artifact holds and what it costs, read from its graph alone: no weights are loaded, nothing runs."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto

from ..core.errors import ArtifactError
from ..core.records import plain
from .artifact import AGAIN, Artifact
from .manifest import TensorSpec
from .onnx_file import TensorInfo, infer_tensors, tensor_spec
from .placement import runs_on
from .tensor_names import PLUGIN_DOMAIN

INDEX_TYPES = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
"""Types of shapes, axes and the like; initializers of any other type are weights."""


@dataclass
class StageCost:
    """One part of the model.

    Attributes:
        name: `stem`, `stage 1` to `stage 5` (each with the downsampling and position embedding that lead into it),
            `final_conv` or `connector`.
        nodes: operators of the graph.
        parameters: elements of its weights.
        gmacs: 1e9 multiply-adds of its convolutions and matrix products, attention's among them, for one image.
        activation_bytes: of every operator's output, in the type it has in the file, for one image.
    """

    name: str
    nodes: int = 0
    parameters: int = 0
    gmacs: float = 0.0
    activation_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An artifact, described.

    Attributes:
        artifact: its folder.
        variant, checkpoint, precision, opset: as in the manifest.
        runs_on: where the file runs, in words.
        inputs, outputs: of the graph.
        resolution: (height, width) that tokens and costs stand for: the artifact's own, or where sizes are dynamic
            the one it was traced at.
        tokens: visual tokens of one image of that size.
        nodes: operators in the graph.
        ops: operator type -> nodes, most frequent first.
        parameters, gmacs, activation_bytes: sums over `stages`.
        files: name -> bytes.
        stages: in the order of the data.
    """

    artifact: str
    variant: str
    checkpoint: str
    precision: str
    opset: int
    runs_on: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    resolution: tuple[int, int]
    tokens: int
    nodes: int
    ops: dict[str, int]
    parameters: int
    gmacs: float
    activation_bytes: int
    files: dict[str, int]
    stages: list[StageCost] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        content: dict[str, Any] = plain(self)
        return content


def inspect_artifact(artifact: str | os.PathLike[str] | Artifact) -> Inspection:
    """Describes an artifact and what one image costs in it.

    Raises ArtifactError for a damaged artifact, and for a graph whose shapes cannot be inferred.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.open(artifact)
    manifest = artifact.manifest
    with artifact.one_version():
        model = onnx.load(str(artifact.model_path), load_external_data=False)  # `Artifact.open` checked it
        files = {file.name: file.stat().st_size for file in sorted(artifact.path.iterdir()) if file.is_file()}
    graph = model.graph
    inputs, outputs = [tensor_spec(v) for v in graph.input], [tensor_spec(v) for v in graph.output]
    frame = manifest.preprocessor
    resolution = (frame.height, frame.width)
    images = inputs[0].shape[0]
    batch = images if isinstance(images, int) else 1
    try:
        tensors = infer_tensors(model, (batch, 3, *resolution))
        stages = _costs(graph, tensors, batch)
    except (KeyError, ValueError, IndexError) as error:
        raise ArtifactError(f"cannot infer the shapes of {artifact.model_path} ({error}); {AGAIN}") from None
    return Inspection(
        artifact=str(artifact.path),
        variant=manifest.variant,
        checkpoint=manifest.checkpoint.source,
        precision=manifest.precision,
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        runs_on=runs_on(manifest),
        inputs=inputs,
        outputs=outputs,
        resolution=resolution,
        tokens=manifest.architecture.tokens(*resolution),
        nodes=len(graph.node),
        ops=dict(Counter(node.op_type for node in graph.node).most_common()),
        parameters=sum(s.parameters for s in stages),
        gmacs=round(sum(s.gmacs for s in stages), 9),
        activation_bytes=sum(s.activation_bytes for s in stages),
        files=files,
        stages=stages,
    )


def _costs(graph: onnx.GraphProto, tensors: dict[str, TensorInfo], batch: int) -> list[StageCost]:
    weights = {t.name for t in graph.initializer if t.data_type not in INDEX_TYPES}
    stages: dict[str, StageCost] = {}
    made_in: dict[str, str] = {}
    for node, name in _placed(graph, made_in):
        stage = stages.setdefault(name, StageCost(name))
        stage.nodes += 1
        stage.gmacs = round(stage.gmacs + _macs(node, tensors) / batch / 1e9, 9)
        stage.activation_bytes += sum(tensors[out].bytes for out in node.output if out) // batch
        for weight in weights.intersection(node.input):
            stage.parameters += tensors[weight].elements
            weights.discard(weight)  # shared ones count once
    return list(stages.values())


def _placed(graph: onnx.GraphProto, made_in: dict[str, str]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Each node and the part it belongs to: by its name, or else that of the data it works on."""
    for node in graph.node:
        name = _part(node.name) or next((made_in[i] for i in node.input if i in made_in), "stem")
        made_in.update((out, name) for out in node.output)
        yield node, name


def _part(node_name: str) -> str | None:
    """`stages.3.blocks.0.mlp.fc1/Conv` -> `stage 4`; None for a name outside the modules."""
    if stage := re.match(r"stages\.(\d+)\.", node_name):
        return f"stage {int(stage[1]) + 1}"
    part = re.match(r"stem|final_conv|connector", node_name)
    return part[0] if part else None


def _macs(node: onnx.NodeProto, tensors: dict[str, TensorInfo]) -> int:
    """Multiply-adds: each output element of a convolution or product sums over one row of its operand."""
    out = tensors[node.output[0]].elements
    if node.op_type == "Conv":
        return out * math.prod(tensors[node.input[1]].shape[1:])
    if node.op_type == "MatMul":
        return out * tensors[node.input[0]].shape[-1]
    if node.domain == PLUGIN_DOMAIN:  # attention on packed qkv: two products over all tokens
        return 2 * out * tensors[node.input[0]].shape[1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return out * tensors[node.input[0]].shape[0 if transposed else -1]
    return 0
