"""What the commands print: JSON for programs, tables for people. Tables fit 80 columns and hold no colour in a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from ..export.artifact import Artifact
    from ..export.features import EncodeReport
    from ..export.inspection import Inspection
    from ..export.manifest import Manifest
    from ..export.onnx_export import ExportReport
    from ..export.parity import Verdict
    from ..kernels.table import Config
    from ..kernels.tune import TuneReport

MAX_NAMES = 4
"""Names of images listed in a row; the rest are counted."""


def print_json(data: Any) -> None:
    """`data`, and nothing else, on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", numbers_from: int = 1) -> None:
    """A table on stdout; columns from `numbers_from` on are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # `str`, never markup: a file name may hold square brackets.
    result = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD if any(header) else None,
        show_header=any(header),
        padding=(0, 1),
    )
    for index, name in enumerate(header):
        result.add_column(Text(name), justify="right" if index >= numbers_from else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(result)
    # rich fills lines up with spaces and draws empty borders; a pipe needs neither.
    lines = [line.rstrip() for line in captured.get().splitlines()]
    click.echo("\n".join(line for line in lines if line) + "\n")


def facts(rows: Iterable[tuple[str, object]], *, title: str = "") -> None:
    """A table of names and values."""
    table(("", ""), rows, title=title, numbers_from=2)


def notices(sentences: Iterable[str], *, err: bool = False) -> None:
    """What a user should read, one line each, on stdout, or on stderr with `err`."""
    for sentence in sentences:
        click.echo(f"note: {one_line(sentence) if err else sentence}", err=err)


def error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    click.echo(f"error: {one_line(message)}", err=True)


# --- numbers -----------------------------------------------------------------------------------


def size(count: float) -> str:
    """Bytes in kB, MB or GB."""
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def border(entry: Mapping[str, Any]) -> str:
    """An input or output: `pixel_values float32 (1, 3, 1024, 1024)`."""
    return f"{entry['name']} {entry['dtype']} ({', '.join(map(str, entry['shape']))})"


def preprocessing(manifest: Manifest) -> str:
    """How images are prepared, and the file of the checkpoint that says so."""
    config = manifest.preprocessor.config
    source = manifest.checkpoint.get("preprocessing_source")
    return config.describe() + (f" (from {one_line(source)})" if source else "")


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


# --- reports -----------------------------------------------------------------------------------


def export_report(report: ExportReport, *, served: Path | None = None) -> None:
    """The summary, the verdict, the notices, and the next command to type; and where a server finds the model."""
    manifest, seconds = report.artifact.manifest, report.seconds
    made_from = manifest.checkpoint
    graph = manifest.graph
    total = sum(entry["bytes"] for entry in manifest.files.values())
    origin = made_from["source"] + (f" at {made_from['revision'][:12]}" if made_from.get("revision") else "")
    facts(
        [
            ("variant", manifest.variant),
            ("checkpoint", f"{origin} ({made_from['form']}, sha256 {made_from['sha256'][:12]})"),
            ("preprocessing", preprocessing(manifest)),
            ("input", border(manifest.input)),
            ("output", border(manifest.output)),
            ("tokens", manifest.tokens if manifest.tokens is not None else "height / 64 x width / 64"),
            ("precision", manifest.precision),
            ("opset", manifest.opset),
            ("nodes", f"{graph['nodes']} ({graph['nodes_traced']} as traced)"),
            ("size", size(total)),
            ("seconds", f"{sum(seconds.values()):.1f}: " + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items())),
            ("artifact", report.artifact.path),
            *((("served from", served),) if served else ()),
        ],
        title="ONNX artifact",
    )
    if manifest.quantization is not None:
        from .render_quantized import quantization

        quantization(manifest.quantization, report.verdict)
    if report.verdict is not None:
        verdict(report.verdict, blocks=manifest.quantization is None)
    elif not report.reused:
        notices([f"parity was not checked; `fvexport parity {_quoted(report.artifact.path)}` does it"])
    notices(report.notices)
    click.echo(f"next: {_next(report.artifact)}")


def _next(artifact: Artifact) -> str:
    """The command to type after an export, with the backend that a quantized file was made for."""
    from ..export.placement import quant_target

    where, target = _quoted(artifact.path), quant_target(artifact.manifest)
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
            ("images", some(found.images)),
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
            *(("input", border(entry)) for entry in found.inputs),
            *(("output", border(entry)) for entry in found.outputs),
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


def encode_report(report: EncodeReport) -> None:
    """What was written; failures go to stderr, one line each."""
    if report.encoded:
        tokens, channels = report.shape
        facts(
            [
                ("images", report.encoded),
                ("features", f"float32 ({tokens}, {channels}) each, named after the image's path"),
                ("backend", f"{report.backend} ({report.backend_why})" if report.backend_why else report.backend),
                ("seconds", f"{report.seconds:.1f} ({report.encoded / max(report.seconds, 1e-9):.1f} images/s)"),
                ("file", report.out),
            ]
        )


def tune_report(report: TuneReport) -> None:
    """What was searched and found, or what would be."""

    def shown(config: Config) -> str:
        return " ".join(str(value) for value in config.arguments.values())

    found = [(s, s.config, s.start_ms, s.ms) for s in report.searches]
    ran = [
        (s.key, shown(s.start), shown(config), f"{1e3 * start:.1f}", f"{1e3 * ms:.1f}", s.tried + s.failed)
        for s, config, start, ms in found
        if config is not None and start is not None and ms is not None
    ]
    if ran:
        table(("kernel and sizes", "default", "found", "µs", "µs", "tried"), ran, title=f"searched on {report.arch}")
    if report.file is not None:
        lines: list[tuple[str, object]] = [("kept in", report.file)]
        lines += [("failed", f"{s.key}: {s.error}") for s in report.searches if s.error]
        lines += [("not searched", f"{report.left} ({report.stopped})")] if report.left else []
        facts(lines)
        return
    planned = [(s.key, shown(s.start), s.neighbours) for s in report.searches]
    header = ("kernel and sizes", "starts from", "first step")
    table(header, planned, title=f"{len(planned)} searches on {report.arch}, not run")


def _quoted(path: object) -> str:
    import shlex

    return shlex.quote(str(path))
