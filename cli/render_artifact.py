"""Tables about one artifact: what an export wrote, its verdict, its operators and costs."""

from __future__ import annotations

from pathlib import Path

from ..core.phrases import first_few
from ..core.shell import quoted
from ..export.artifact import Artifact
from ..export.inspection import Inspection
from ..export.manifest import Manifest, TensorSpec
from ..export.onnx_export import ExportReport
from ..export.parity import Verdict
from ..export.placement import quant_target
from .printing import MAX_NAMES, facts, notices, size, table, write_line
from .render_quantized import quantization


def tensor(spec: TensorSpec) -> str:
    """An input or output: `pixel_values float32 (1, 3, 1024, 1024)`."""
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def preprocessing(manifest: Manifest) -> str:
    """How images are prepared, and the file of the checkpoint that says so."""
    config = manifest.preprocessor.config
    source = manifest.checkpoint.preprocessing_source
    return config.describe() + (f" (from {source})" if source else "")


def export_report(report: ExportReport, *, served: Path | None = None) -> None:
    """The summary, the verdict, the notices, and the next command to type; and where a server finds the model."""
    manifest, seconds = report.artifact.manifest, report.seconds
    made_from = manifest.checkpoint
    graph = manifest.graph
    total = sum(entry.bytes for entry in manifest.files.values())
    origin = made_from.source + (f" at {made_from.revision[:12]}" if made_from.revision else "")
    facts(
        [
            ("variant", manifest.variant),
            ("checkpoint", f"{origin} ({made_from.form}, sha256 {made_from.sha256[:12]})"),
            ("preprocessing", preprocessing(manifest)),
            ("input", tensor(manifest.input)),
            ("output", tensor(manifest.output)),
            ("tokens", manifest.tokens if manifest.tokens is not None else "height / 64 x width / 64"),
            ("precision", manifest.precision),
            ("opset", manifest.opset),
            ("nodes", f"{graph.nodes} ({graph.nodes_traced} as traced)"),
            ("size", size(total)),
            ("seconds", f"{sum(seconds.values()):.1f}: " + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items())),
            ("artifact", report.artifact.path),
            *((("served from", served),) if served else ()),
        ],
        title="ONNX artifact",
    )
    if manifest.quantization is not None:
        quantization(manifest.quantization, report.verdict)
    if report.verdict is not None:
        verdict(report.verdict, blocks=manifest.quantization is None)
    elif not report.reused:
        notices([f"parity was not checked; `fvexport parity {quoted(report.artifact.path)}` does it"])
    notices(report.notices)
    write_line(f"next: {_next(report.artifact)}")


def _next(artifact: Artifact) -> str:
    """The command to type after an export, with the backend that a quantized file was made for."""
    where, target = quoted(artifact.path), quant_target(artifact.manifest)
    if target == "tensorrt":
        return f"fvexport trt --artifact {where}"
    backend = f" --backend {target}" if target else ""
    return f"fvexport encode photo.jpg --artifact {where}{backend} --out features.safetensors"


def verdict(found: Verdict, *, blocks: bool = True) -> None:
    """The figures beside PyTorch's own and the thresholds, then every block where they were compared."""
    ours, own, allowed = found.figures, found.torch, found.thresholds
    bound, centred = allowed.bounds(own)
    rows = [
        ("max abs", f"{ours.max_abs:.2e}", f"{own.max_abs:.2e}", ""),
        ("relative L2", f"{ours.rel_l2:.2e}", f"{own.rel_l2:.2e}", f"<= {bound:.2e}"),
        ("centred relative L2", *(_optional(f.centred_rel_l2, ".2e") for f in (ours, own)), f"<= {centred:.2e}"),
        ("cosine, mean", f"{ours.cosine:.7f}", f"{own.cosine:.7f}", ""),
        ("cosine, worst token", f"{ours.cosine_min:.7f}", f"{own.cosine_min:.7f}", f">= {allowed.cosine_min}"),
        ("SQNR, dB", f"{ours.sqnr_db:.1f}", f"{own.sqnr_db:.1f}", ""),
        ("centred SQNR, dB", *(_optional(f.centred_sqnr_db, ".1f") for f in (ours, own)), ""),
    ]
    header = ("against float32", "artifact", f"PyTorch {found.precision}", "allowed")
    table(header, rows, title=f"parity: {found.status.upper()}, {found.reason}")
    facts(
        [
            ("allowed", f"{allowed.over_torch:g} x PyTorch's own error, yet never under "
                        f"{allowed.rel_l2_floor:.1e} or over {allowed.rel_l2_limit:.1e} "
                        f"(centred: {allowed.centred_floor:.1e}, {allowed.centred_limit:.1e})"),
            ("images", first_few(found.images, MAX_NAMES)),
            ("resolutions", ", ".join(found.resolutions)),
            ("backend", found.backend),
        ]
    )  # fmt: skip
    if found.layers and blocks:
        _layers(found)


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _layers(found: Verdict) -> None:
    def shown(value: float | None) -> str:
        return "non-finite" if value is None else f"{value:.2e}"

    rows = [
        (f.name, shown(f.rel_l2), shown(f.torch_rel_l2), f"{f.bound:.2e}", "ok" if f.passed else "OVER")
        for f in found.layers
    ]
    first = found.first_bad_layer
    title = f"first block over its bound: {first}" if first else "every block is within its bound"
    table(("block", "relative L2", f"PyTorch {found.precision}", "allowed", ""), rows, title=title)


def inspection(found: Inspection) -> None:
    """Borders and totals, operators by type, and the cost of each stage."""
    height, width = found.resolution
    facts(
        [
            ("variant", found.variant),
            ("checkpoint", found.checkpoint),
            ("precision", found.precision),
            ("opset", found.opset),
            *(("input", tensor(entry)) for entry in found.inputs),
            *(("output", tensor(entry)) for entry in found.outputs),
            ("tokens", f"{found.tokens} at {height}x{width}"),
            ("parameters", f"{found.parameters / 1e6:.2f} M"),
            ("nodes", f"{found.nodes}: " + ", ".join(f"{count} {op}" for op, count in found.ops.items())),
            ("files", ", ".join(f"{name} {size(count)}" for name, count in found.files.items())),
            ("runs on", found.runs_on),
        ],
        title=found.artifact,
    )
    rows = [
        (s.name, s.nodes, f"{s.parameters / 1e6:.3f}", f"{s.gmacs:.4f}", _share(s.gmacs, found.gmacs),
         f"{s.activation_bytes / 1e6:.1f}")
        for s in found.stages
    ]  # fmt: skip
    rows.append(
        ("all", found.nodes, f"{found.parameters / 1e6:.3f}", f"{found.gmacs:.4f}", "100 %",
         f"{found.activation_bytes / 1e6:.1f}")
    )  # fmt: skip
    header = ("part", "nodes", "M parameters", "GMAC", "share", "activations, MB")
    table(header, rows, title=f"one image of {height}x{width}")


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
