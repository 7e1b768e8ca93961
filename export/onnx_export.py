"""The main job: a checkpoint in, an ONNX artifact out, with the proof that it is the same model."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from msgspec.structs import replace
from safetensors.torch import save

from .. import __version__
from ..core.dtypes import BITS
from ..core.errors import CheckpointError, ExportError
from ..core.progress import Progress, silent
from ..core.records import parse
from ..core.temporary import check_temporary_folder
from ..core.threads import torch_threads
from ..core.utf8_path import utf8_path
from ..core.verdict.sections import VerdictSection
from ..core.versions import versions_of
from ..encoder.checkpoint import Checkpoint
from ..encoder.checkpoint.load import rounded_sha256
from ..encoder.fastvithd import FastViTHD
from ..encoder.image import ImageLike
from ..encoder.preprocess import Preprocessor
from ..encoder.reparameterize import reparameterize
from . import onnxsim_process
from .artifact import (
    BLOCK_SCALES_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Artifact,
    check_writable,
    describe_files,
    writing,
)
from .backend_table import get_backend, why_absent
from .clock import Clock
from .export_options import ExportOptions
from .manifest import METADATA_KEY, CheckpointSection, GraphSection, Manifest, RecordedOptions, TensorSpec
from .model_file import read_model
from .parity import Images, Verdict, check_parity, photographs
from .placement import export_notices
from .prepare import Prepared, prepare
from .requests import ExportKeywords, ExportRequest, export_request
from .reuse import standing
from .rules import check_quantized, check_rules
from .saturation import count_saturating
from .simplification import simplified, write_graph
from .tensor_names import INPUT_NAME, OUTPUT_NAME
from .tracing import ExportModule, trace

if TYPE_CHECKING:
    import onnx_ir as ir
    from typing_extensions import Unpack

PLUGIN_NOTICE = (
    "attention is the node fvexport::Attention, experimental: the verdict is of the function that onnxruntime runs, "
    "and TensorRT needs fvexport.kernels.tensorrt_plugin.register_attention()"
)


@dataclass(frozen=True)
class ExportReport:
    """What `export_onnx` did.

    Attributes:
        artifact: the artifact, where it now lies.
        verdict: of parity, or None if it was skipped, or if an existing artifact was taken: its manifest has it then.
        seconds: per phase, in order.
        notices: sentences that a user should read.
        reused: whether an existing artifact was taken as it is.
        module: the encoder that was traced, on which PyTorch's own loss can be measured; None if `reused`.
    """

    artifact: Artifact
    verdict: Verdict | None
    seconds: dict[str, float]
    notices: list[str]
    reused: bool = False
    module: FastViTHD | None = None


def export_onnx(
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None, out: str | os.PathLike[str] | None = None, *,
    options: ExportOptions | None = None, progress: Progress = silent, **keywords: Unpack[ExportKeywords],
) -> ExportReport:  # fmt: skip
    """Exports FastViTHD to an ONNX artifact and checks it.

    An artifact at `out` that was made from the same weights with the same options is returned as it is.

    Args:
        checkpoint: a file, folder or Hugging Face id; None for seeded weights, which mean nothing.
        out: the folder to write; None for one in the current folder, named after its content.
        options: what to export; 1024 x 1024, batch 1, float32 by default.
        progress: called as phases end.
        keywords: of the following
            variant, revision, seed: see `load_checkpoint`.
            force: replace an artifact that exists at `out`, even one that is the same.
            parity: compare with the eager model, unless False; a file that fails is not written.
            images: photographs to compare on, and to measure a bound on.
            calibration: pictures, method and bound of a quantized file; also the pictures on which FP16's largest
                values are measured.

    Raises:
        FvexportError: one of its kinds, saying what to do; `out` is then as it was.
    """
    return run_export(export_request(checkpoint, out, options or ExportOptions(), keywords), progress)


@torch_threads()
def run_export(request: ExportRequest, progress: Progress = silent) -> ExportReport:
    """Does what `export_onnx` does, for a request."""
    options, calibration, force = request.graph.resolved(), request.calibration, request.output.force
    shown = _check_request(request, options)
    clock = Clock(progress)
    with clock("load"):
        checkpoint = request.weights.load(require_connector=options.projector)
    info = checkpoint.info
    if options.projector and checkpoint.connector is None:
        raise CheckpointError(f"{info.source}: has no connector; leave out --projector, or give a FastVLM checkpoint")
    target = request.output.folder(options, info.variant)
    parity = request.checks.parity
    if not force and (found := standing(target, checkpoint, options, calibration, parity=parity)) is not None:
        told = f"{target} was made before from the same weights with the same options, and is used as it is."
        return ExportReport(found, None, clock.seconds, [*info.notices, told], reused=True)
    # Of a quantized file's weights, a few stay in float32: two bytes per weight are enough.
    bytes_each = max(16, BITS[options.precision]) // 8
    weights = sum(p.numel() for p in checkpoint.encoder.parameters()) * bytes_each
    check_writable(target, force=force, need_bytes=int(1.1 * weights))

    with clock("prepare"):
        prepared = prepare(checkpoint, options, calibration, shown, progress)
    notices = [*export_notices(request.graph, options), *prepared.notices]
    if options.attention_plugin:
        notices.append(PLUGIN_NOTICE)
    model, graph = _graph(checkpoint, prepared, options, clock)
    with writing(target, force=force) as folder:
        with clock("write"):
            write_graph(model, folder)
            tensors = _tensor_spec(model.graph.inputs[0], INPUT_NAME), _tensor_spec(model.graph.outputs[0], OUTPUT_NAME)
            if prepared.block_scales:
                (folder / BLOCK_SCALES_FILE).write_bytes(save(prepared.block_scales))  # save_file's only we could read
            del model
        with clock("check"):
            proto = _checked(folder, checkpoint, options, prepared)
            manifest = _draft(checkpoint, options, graph, tensors, prepared)
            if manifest.quantization is not None and options.precision == "int8":
                saturation = count_saturating(read_model(Artifact(folder, manifest)))
                manifest = manifest.replace(quantization=replace(manifest.quantization, saturation=saturation))
        verdict = None
        if parity:
            with clock("parity"):
                verdict = _judged(Artifact(folder, manifest), checkpoint, prepared, shown, notices, progress)
                manifest = _with_verdict(manifest, verdict)
        with clock("write"):
            _embed(proto, manifest, folder)
            manifest = manifest.replace(files=describe_files(folder))
            (folder / MANIFEST_FILE).write_text(manifest.to_json() + "\n", encoding="utf-8")
    notices = [text for text in (*info.notices, graph.kept_unsimplified, *notices) if text]
    return ExportReport(Artifact(target, manifest), verdict, clock.seconds, notices, module=prepared.encoder)


def _check_request(request: ExportRequest, options: ExportOptions) -> dict[str, ImageLike]:
    """Checks what can be checked before weights are read; returns the photographs that the file is judged on."""
    options.check(request.weights.architecture)
    check_temporary_folder()
    out, force = request.output.out, request.output.force
    if out is not None and (force or not (Path(out) / MANIFEST_FILE).is_file()):
        check_writable(Path(out), force=force)
    bound = options.quantized and request.calibration.bound is not None
    return photographs(request.checks.images) if request.checks.parity or bound else {}


def _checked(folder: Path, checkpoint: Checkpoint, options: ExportOptions, prepared: Prepared) -> onnx.ModelProto:
    """The graph that was written, without its weights; raises ExportError if it breaks a rule."""
    with utf8_path(folder / MODEL_FILE) as file:
        onnx.checker.check_model(file, full_check=True)
    proto = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
    check_rules(
        proto, checkpoint.encoder.config, projector=options.projector, attention_plugin=options.attention_plugin
    )
    if prepared.quantization is not None:
        check_quantized(proto, prepared.quantization.quantized)
    return proto


def _judged(
    artifact: Artifact, checkpoint: Checkpoint, prepared: Prepared, shown: Images, notices: list[str],
    progress: Progress,
) -> Verdict:  # fmt: skip
    """The verdict; raises ExportError if the file does not pass."""
    quantization = artifact.manifest.quantization
    backend = "onnxruntime-cpu"
    if quantization is not None:
        row = get_backend(quantization.target)
        backend = row.judge or row.name
        if (reason := why_absent(get_backend(backend))) is not None:
            notices.append(f"judged by onnxruntime-cpu, since {reason}: `{get_backend(backend).install}`")
            backend = "onnxruntime-cpu"
    verdict = check_parity(
        artifact, checkpoint=checkpoint, images=shown, backend=backend, layers=quantization is not None,
        exported=prepared.encoder if prepared.changed else None, progress=progress,
    )  # fmt: skip
    if not verdict.passed:
        raise ExportError(
            f"parity failed, nothing written: {verdict.reason}; "
            "--no-parity writes it anyway, and `fvexport parity --layers` finds the block"
        )
    return verdict


def _with_verdict(draft: Manifest, verdict: Verdict) -> Manifest:
    """The manifest of a file that passed: with the verdict, and with what PyTorch loses by the same quantization."""
    section = parse(verdict.to_dict(), VerdictSection)
    if draft.quantization is None:
        return draft.replace(parity=section)
    blocks = {layer.name: layer.torch_rel_l2 for layer in section.layers}
    return draft.replace(
        parity=section, quantization=replace(draft.quantization, predicted=section.torch, blocks=blocks)
    )


def _graph(
    checkpoint: Checkpoint, prepared: Prepared, options: ExportOptions, clock: Clock
) -> tuple[ir.Model, GraphSection]:
    """The graph that will be written, and its section of the manifest."""
    connector = reparameterize(checkpoint.connector) if options.projector and checkpoint.connector else None
    module = ExportModule(prepared.encoder, connector, options)
    if options.simplify:
        onnxsim_process.start()
    with clock("trace"):
        model = trace(module, options)
    with clock("simplify"):
        return simplified(model, options, checkpoint.encoder.config)


def _embed(proto: onnx.ModelProto, manifest: Manifest, folder: Path) -> None:
    """Puts the manifest (but the files' hashes, of which this file is one) into the ONNX metadata."""
    content = manifest.to_dict()
    del content["files"]
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(content))
    proto.producer_name, proto.producer_version = "fvexport", __version__
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())


def _tensor_spec(value: ir.Value, name: str) -> TensorSpec:
    assert value.shape is not None and value.dtype is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    dtype = {"FLOAT": "float32"}.get(value.dtype.name, value.dtype.name.lower())
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _draft(
    checkpoint: Checkpoint, options: ExportOptions, graph: GraphSection, tensors: tuple[TensorSpec, TensorSpec],
    prepared: Prepared,
) -> Manifest:  # fmt: skip
    """The manifest by which the file is judged: without a verdict and without the files' hashes."""
    info, config = checkpoint.info, checkpoint.encoder.config
    connector = checkpoint.connector.config if options.projector and checkpoint.connector else None
    return Manifest(
        variant=info.variant,
        architecture=config,
        checkpoint=parse(info.to_dict() | {"rounded": _rounded(checkpoint)}, CheckpointSection),
        precision=options.precision,
        input=tensors[0],
        output=tensors[1],
        preprocessor=Preprocessor(options.height, options.width, info.preprocessing),
        tokens=None if options.dynamic_res else config.tokens(options.height, options.width),
        opset=options.effective_opset,
        options=RecordedOptions(**vars(options), connector=connector),
        graph=graph,
        files={},
        versions=_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        quantization=prepared.quantization,
        fp16=prepared.fp16,
    )


def _rounded(checkpoint: Checkpoint) -> dict[str, dict[str, str | None]]:
    """The hashes that the same weights have once they were rounded to a half type, by its name."""
    modules = {"sha256": checkpoint.encoder, "connector_sha256": checkpoint.connector}
    return {
        str(dtype).removeprefix("torch."): {
            name: None if module is None else rounded_sha256(module, dtype) for name, module in modules.items()
        }
        for dtype in (torch.bfloat16, torch.float16)
    }


def _versions() -> dict[str, str]:
    found = {"fvexport": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return found | versions_of("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu", "numpy")
