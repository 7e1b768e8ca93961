"""What `fvexport trt` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.phrases import first_few
from ..core.shell import quoted
from ..export.engine_export import EngineReport
from ..export.engines.engine_section import EngineSection
from ..export.engines.summary import EngineSummary
from .printing import facts, notices, size, table, write_line
from .render_artifact import tensor, verdict

MANY = 6
"""Rows of a list before the rest is counted."""


def to_dict(report: EngineReport) -> dict[str, Any]:
    """Plain data for `--json`."""
    return {
        "artifact": str(report.artifact.path),
        "manifest": report.artifact.manifest.to_dict(),
        "verdict": report.verdict and report.verdict.to_dict(),
        "onnx_reused": report.reused,
        "trtexec": report.trtexec,
        "seconds": report.seconds,
        "notices": report.notices,
    }


def engine_report(report: EngineReport, *, served: Path | None = None) -> None:
    """What was built, what it was compiled to, the verdicts, the notices, and the next command to type.

    `served` is where a server finds the model, if it was put there.
    """
    manifest = report.artifact.manifest
    made = f"{manifest.checkpoint.source} (sha256 {manifest.checkpoint.sha256[:12]})"
    onnx_verdict = manifest.parity.status.upper() if manifest.parity else "not checked"
    rows: list[tuple[str, object]] = [
        ("checkpoint", made),
        (
            "ONNX file",
            f"{manifest.precision}, parity {onnx_verdict}" + (", taken as it stood" if report.reused else ""),
        ),
        ("input", tensor(manifest.input)),
        ("output", tensor(manifest.output)),
    ]
    if manifest.engine is not None:
        rows += _engine_rows(manifest.engine)
    taken = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    rows += [("seconds", f"{sum(report.seconds.values()):.1f}: {taken}"), ("artifact", report.artifact.path)]
    rows += [("served from", served)] if served else []
    facts(rows, title="TensorRT engine" if manifest.engine else "dry run: the ONNX file alone")
    if report.summary is not None:
        summary(report.summary)
    if report.verdict is not None:
        verdict(report.verdict)
    notices(report.notices)
    where = quoted(report.artifact.path)
    if manifest.engine is None:
        write_line(f"next: {report.trtexec}")
    else:
        backend = manifest.engine.flavour
        write_line(f"next: fvexport encode photo.jpg --artifact {where} --backend {backend} --out features.safetensors")


def _engine_rows(engine: EngineSection) -> list[tuple[str, object]]:
    memory = engine.memory
    spans = {name: ":".join(map(str, dict.fromkeys(span))) for name, span in vars(engine.profile).items()}
    told = [f"{size(memory['plan'])} on disk"]
    told += [f"{size(memory[name])} of {name}" for name in ("weights", "activations") if name in memory]
    flags = [name.replace("_", "-") for name in ("hardware_compatible", "version_compatible", "strip") if (
        getattr(engine.options, name)
    )]  # fmt: skip
    return [
        ("bound to", engine.bound_to),
        ("takes", f"batch {spans['batch']}, height {spans['height']}, width {spans['width']}"),
        ("engine", ", ".join(told) + (f"; {', '.join(flags)}" if flags else "")),
    ]


def summary(found: EngineSummary) -> None:
    """Layers by type, attention, what fell back, what is only moved, the largest tensors."""
    kinds = list(dict.fromkeys((*found.products, *found.others)))
    table(
        ("computed in", "convolutions and products", "all else"),
        [(kind, found.products.get(kind, 0), found.others.get(kind, 0)) for kind in kinds],
        title=f"{found.layers} layers",
    )
    fused = [state for state in found.attention if state.fused]
    apart = [f"{state.block} in {len(state.layers)} layers" for state in found.attention if not state.fused]
    moved = f", {size(found.moved_bytes)} read and written" if found.moved_bytes else ""
    facts(
        [
            ("attention", f"{len(fused)} of {len(found.attention)} blocks in one kernel each"
                          + (f"; {first_few(apart, MANY)}" if apart else "")),
            ("wider than asked", _fallbacks(found)),
            ("moved about", f"{found.moves} layers only lay values out anew{moved}"),
            ("largest", ", ".join(f"{where} {dtype} {size(count)}" for where, dtype, _, count in found.largest[:3])
                        or "unknown before sizes are"),
        ]
    )  # fmt: skip


def _fallbacks(found: EngineSummary) -> str:
    if not found.fallbacks:
        return "nothing"
    told = [f"{fall.node} in {fall.found}, not {fall.wanted}" for fall in found.fallbacks]
    return f"{len(told)}: {first_few(told, MANY)}"
