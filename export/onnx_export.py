"""The main job: a checkpoint in, an ONNX artifact out, with the proof that it is the same model."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from safetensors.torch import save

from .. import __version__
from ..calibration.calibration_options import CalibrationOptions
from ..core.errors import CheckpointError, ExportError
from ..core.progress import Progress, silent
from ..core.versions import versions_of
from ..encoder.checkpoint import Checkpoint, load_checkpoint
from ..encoder.checkpoint.load import rounded_sha256
from ..encoder.config import FastViTHDConfig, get_variant
from ..encoder.fastvithd import FastViTHD
from ..encoder.preprocess import Preprocessor
from ..encoder.reparameterize import reparameterize
from .artifact import MANIFEST_FILE, MODEL_FILE, Artifact, check_writable, describe_files, writing
from .backend_table import get_backend, why_absent
from .clock import Clock
from .export_options import ExportOptions
from .manifest import METADATA_KEY, Manifest
from .parity import BLOCK_SCALES_FILE, Images, Verdict, check_parity, photographs
from .placement import export_notices
from .prepare import Prepared, prepare
from .reuse import standing
from .rules import check_quantized, check_rules
from .saturation import count_saturating
from .simplification import simplified, write_graph
from .tracing import INPUT_NAME, OUTPUT_NAME, ExportModule, trace

if TYPE_CHECKING:
    import onnx_ir as ir

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2, "fp8": 2}
"""Per weight, at most: of a quantized file's, a few stay in float32."""

PLUGIN_NOTICE = (
    "attention is the node fvexport::Attention, experimental: the verdict is of the function that onnxruntime runs, "
    "and TensorRT needs fvexport.kernels.tensorrt_plugin.register_attention()"
)

JUDGES = {"tensorrt": "onnxruntime-cpu", "onnxruntime-cpu": "onnxruntime-cpu", "openvino": "openvino"}
"""What runs a quantized file for its verdict, by target."""


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
    options: ExportOptions | None = None, variant: str | None = None, revision: str | None = None, seed: int = 0,
    force: bool = False, parity: bool = True, images: Images = None, calibration: CalibrationOptions | None = None,
    progress: Progress = silent,
) -> ExportReport:  # fmt: skip
    """Exports FastViTHD to an ONNX artifact and checks it.

    An artifact at `out` that was made from the same weights with the same options is returned as it is.

    Args:
        checkpoint: a file, folder or Hugging Face id; None for seeded weights, which mean nothing.
        out: the folder to write; None for one in the current folder, named after its content.
        options: what to export; 1024 x 1024, batch 1, float32 by default.
        variant, revision, seed: see `load_checkpoint`.
        force: replace an artifact that exists at `out`, even one that is the same.
        parity: compare with the eager model; a file that fails is not written.
        images: photographs to compare on, and to measure a bound on.
        calibration: pictures, method and bound of a quantized file; also what FP16's largest values are looked for on.
        progress: called as phases end.

    Raises:
        FvexportError: one of its kinds, saying what to do; `out` is then as it was.
    """
    asked = options or ExportOptions()
    options = asked.resolved()
    calibration = calibration or CalibrationOptions()
    options.check(FastViTHDConfig() if variant is None else get_variant(variant))
    if out is not None and (force or not (Path(out) / MANIFEST_FILE).is_file()):
        check_writable(Path(out), force=force)
    bound = options.quantized and calibration.bound is not None
    shown = photographs(images) if parity or bound else {}

    clock = Clock(progress)
    with clock("load"):
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(
                checkpoint, variant=variant, revision=revision, seed=seed, require_connector=options.projector
            )
    info = checkpoint.info
    if options.projector and checkpoint.connector is None:
        raise CheckpointError(f"{info.source}: has no connector; leave out --projector, or give a FastVLM checkpoint")
    target = Path(out) if out is not None else Path(options.default_name(info.variant))
    if not force and (found := standing(target, checkpoint, options, calibration, parity=parity)) is not None:
        told = f"{target} was made before from the same weights with the same options, and is used as it is."
        return ExportReport(found, None, clock.seconds, [*info.notices, told], reused=True)
    weights = sum(p.numel() for p in checkpoint.encoder.parameters()) * BYTES[options.precision]
    check_writable(target, force=force, need_bytes=int(1.1 * weights))

    with clock("prepare"):
        prepared = prepare(checkpoint, options, calibration, shown, progress)
    notices = [*export_notices(asked, options), *prepared.notices]
    if options.attention_plugin:
        notices.append(PLUGIN_NOTICE)
    model, graph = _graph(checkpoint, prepared, options, clock)
    with writing(target) as folder:
        with clock("write"):
            write_graph(model, folder)
            manifest = _manifest(checkpoint, options, graph, model, prepared)
            if prepared.block_scales:
                (folder / BLOCK_SCALES_FILE).write_bytes(save(prepared.block_scales))  # save_file's only we could read
            del model
        with clock("check"):
            onnx.checker.check_model(str(folder / MODEL_FILE), full_check=True)
            proto = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
            check_rules(
                proto, checkpoint.encoder.config, projector=options.projector,
                attention_plugin=options.attention_plugin,
            )  # fmt: skip
            if manifest.quantization:
                check_quantized(proto, manifest.quantization["quantized"])
                if options.precision == "int8":
                    manifest.quantization["saturation"] = count_saturating(onnx.load(str(folder / MODEL_FILE)))
        verdict = None
        if parity:
            with clock("parity"):
                verdict = _judged(Artifact(folder, manifest), checkpoint, prepared, shown, notices, progress)
        with clock("write"):
            _embed(proto, manifest, folder)
            manifest.files = describe_files(folder)
            (folder / MANIFEST_FILE).write_text(manifest.to_json() + "\n", encoding="utf-8")
    notices = [text for text in (*info.notices, graph["kept_unsimplified"], *notices) if text]
    return ExportReport(Artifact(target, manifest), verdict, clock.seconds, notices, module=prepared.encoder)


def _judged(
    artifact: Artifact, checkpoint: Checkpoint, prepared: Prepared, shown: Images, notices: list[str],
    progress: Progress,
) -> Verdict:  # fmt: skip
    """The verdict, which the manifest then holds; raises ExportError where the file does not pass."""
    manifest = artifact.manifest
    backend = "onnxruntime-cpu"
    if manifest.quantization:
        backend = JUDGES[manifest.quantization["target"]]
        if (reason := why_absent(get_backend(backend))) is not None:
            notices.append(f"judged by onnxruntime-cpu, since {reason}: `{get_backend(backend).install}`")
            backend = "onnxruntime-cpu"
    verdict = check_parity(
        artifact, checkpoint=checkpoint, images=shown, backend=backend, layers=manifest.quantization is not None,
        exported=prepared.encoder if prepared.changed else None, progress=progress,
    )  # fmt: skip
    if not verdict.passed:
        raise ExportError(
            f"parity failed, nothing written: {verdict.reason}; "
            "--no-parity writes it anyway, and `fvexport parity --layers` finds the block"
        )
    manifest.parity = verdict.to_dict()
    if manifest.quantization:
        manifest.quantization["predicted"] = verdict.torch.to_dict()
        manifest.quantization["blocks"] = {layer.name: layer.torch_rel_l2 for layer in verdict.layers}
    return verdict


def _graph(
    checkpoint: Checkpoint, prepared: Prepared, options: ExportOptions, clock: Clock
) -> tuple[ir.Model, dict[str, Any]]:
    """The graph that will be written; and the manifest's words on it."""
    connector = reparameterize(checkpoint.connector) if options.projector and checkpoint.connector else None
    module = ExportModule(prepared.encoder, connector, options)
    with clock("trace"):
        model = trace(module, options)
    with clock("simplify"):
        return simplified(model, options, checkpoint.encoder.config)


def _embed(proto: onnx.ModelProto, manifest: Manifest, folder: Path) -> None:
    """Puts the manifest (but the files' hashes, of which this file is one) into the ONNX metadata."""
    content = json.loads(manifest.to_json())
    del content["files"]
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(content))
    proto.producer_name, proto.producer_version = "fvexport", __version__
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())


def _manifest(
    checkpoint: Checkpoint, options: ExportOptions, graph: dict[str, Any], model: ir.Model, prepared: Prepared
) -> Manifest:
    info, config = checkpoint.info, checkpoint.encoder.config

    def border(value: Any, name: str) -> dict[str, Any]:
        shape = [d if isinstance(d, int) else str(d.value) for d in value.shape]
        dtype = {"FLOAT": "float32"}.get(value.dtype.name, value.dtype.name.lower())
        return {"name": name, "dtype": dtype, "shape": shape}

    connector = checkpoint.connector.config if options.projector and checkpoint.connector else None
    return Manifest(
        variant=info.variant,
        config=config.to_dict(),
        checkpoint=info.to_dict() | {"rounded": _rounded(checkpoint)},
        precision=options.precision,
        input=border(model.graph.inputs[0], INPUT_NAME),
        output=border(model.graph.outputs[0], OUTPUT_NAME),
        preprocessing=Preprocessor(options.height, options.width, info.preprocessing).to_dict(),
        tokens=None if options.dynamic_res else config.tokens(options.height, options.width),
        opset=options.effective_opset,
        options=options.to_dict() | {"connector": asdict(connector) if connector else None},
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
