"""What commands print of calibration and quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import UNSET

from ..calibration.calibrate import CalibrationReport
from ..calibration.calibration_options import METHODS
from ..calibration.findings import LayerNoise
from ..calibration.ranges_record import TensorRange
from ..core.shell import command_line
from ..export.manifest import QuantizationSection
from ..export.parity import Verdict
from .printing import facts, notices, size, table, write_line

BAR = 24
"""Characters of the longest bar."""
WORST = 8
"""Rows of a table that shows only the worst."""


def calibration(report: CalibrationReport) -> None:
    """What was seen, the tensors whose channels differ most, and the next command to type."""
    stats, key = report.stats, report.stats.key
    tap, peak = report.fp16_peak
    facts(
        [
            ("checkpoint", f"{stats.checkpoint_source} (sha256 {key.checkpoint[:12]})"),
            ("resolution", f"{key.height}x{key.width}"),
            ("pictures", f"{stats.done} from {stats.source} (fingerprint {key.data[:12]})"),
            ("method", report.method),
            ("tensors", f"{len(report.ranges)} that may be quantized, {len(stats.amax)} observed"),
            ("largest value", f"{peak:.4g} at {tap}; FP16 ends at 65504"),
            ("seconds", f"{report.seconds:.1f}"),
            ("ranges", f"{report.out} ({size(report.out.stat().st_size)})"),
        ],
        title="calibration",
    )
    rows = sorted(report.ranges, key=lambda row: -(row.spread or 0))[:WORST]
    table(
        ("tensor", "seen", "kept", "spread"),
        [(row.tap, _span(row.low, row.high), _span(row.chosen_low, row.chosen_high), _spread(row)) for row in rows],
        title=f"the {len(rows)} tensors whose largest and typical channel differ most: equalization makes them alike",
    )
    notices(report.notices)
    write_line(f"next: {_next(report)}")


def _next(report: CalibrationReport) -> str:
    """The export of the same weights with these ranges, to be typed as it is."""
    info, key = report.checkpoint, report.stats.key
    words: list[str] = ["fvexport", "onnx", "--int8"]
    if info.form != "seeded":
        words += ["--checkpoint", info.source] + (["--revision", info.revision] if info.revision else [])
    else:
        words += ["--variant", info.variant, "--seed", info.source.removeprefix("seeded:")]
    words += ["--res", str(key.height) if key.height == key.width else f"{key.height}x{key.width}"]
    words += ["--ranges", str(report.out)]
    if report.method != METHODS[0]:
        words += ["--method", report.method]
    return command_line(words)


def _span(low: float, high: float) -> str:
    return f"{low:.3g}..{high:.3g}"


def _spread(row: TensorRange) -> str:
    return f"{row.spread:.1f}" if row.spread is not None else "one scale"


def quantization(made: QuantizationSection, found: Verdict | None) -> None:
    """How a file was quantized; which layers stayed in float, and why; the error from block to block."""
    data, kept = made.data, made.kept_float
    facts(
        [
            ("target", made.target),
            ("layers", f"{len(made.quantized)} in {made.format.upper()}, {len(kept)} more kept in float; "
                       f"all else in {made.float_precision}"),
            ("ranges", f"{made.method} over {data.samples} pictures of {data.source}"),
            ("equalized", ", ".join(made.equalization)),
            *_range_rows(made),
            ("SQNR", "not measured" if found is None else
                     f"{found.figures.sqnr_db:.1f} dB, {found.torch.sqnr_db:.1f} dB predicted by PyTorch"),
            *_centred(found),
        ],
        title="quantization",
    )  # fmt: skip
    if made.sensitivity:
        sensitivity(made.sensitivity, kept)
    if found is not None and found.layers:
        curve(found, only_ends=True)


def _centred(found: Verdict | None) -> list[tuple[str, object]]:
    """The SQNR of what varies, if there is one."""
    if found is None or found.figures.centred_sqnr_db is None or found.torch.centred_sqnr_db is None:
        return []
    ours, own = found.figures.centred_sqnr_db, found.torch.centred_sqnr_db
    return [("centred SQNR", f"{ours:.1f} dB, {own:.1f} dB predicted by PyTorch")]


def _range_rows(made: QuantizationSection) -> list[tuple[str, object]]:
    """The weights' range, and the pairs of them whose products saturate on CPUs without VNNI."""
    found = made.saturation
    if found is UNSET:
        return []
    saturates = f"{found.affected} of {found.pairs} pairs of products, in {len(found.layers)} layers"
    return [
        ("weights", "-64 to 64" if made.reduce_range else "-127 to 127"),
        ("saturates", f"{saturates}, on CPUs without VNNI" if found.affected else "nowhere"),
    ]


def sensitivity(layers: Sequence[LayerNoise], kept: Sequence[str]) -> None:
    """A table and a plot: SQNR of the features where one layer alone is quantized, those kept in float first."""
    shown = layers[: max(WORST, len(kept))]
    least, most = min(row.sqnr_db for row in layers), max(row.sqnr_db for row in layers)
    table(
        ("layer", "alone, dB", "work", "", "noise"),
        [
            (row.name, f"{row.sqnr_db:.1f}", f"{row.share:.1%}", "float" if row.name in kept else "",
             _bar(most - row.sqnr_db, most - least))
            for row in shown
        ],
        title=f"the {len(shown)} most sensitive of {len(layers)} layers",
    )  # fmt: skip


def curve(found: Verdict, *, only_ends: bool = False) -> None:
    """SQNR after each block, in the artifact and in PyTorch; with `only_ends` after each stage's last alone."""
    layers = found.layers
    if only_ends:
        stages = [layer.name.split(".blocks.")[0] for layer in layers]
        layers = [layer for i, layer in enumerate(layers) if i + 1 == len(layers) or stages[i] != stages[i + 1]]
    pairs = [(layer.name, _db(layer.rel_l2), _db(layer.torch_rel_l2)) for layer in layers]
    finite = [value for _, value, _ in pairs if value is not None and math.isfinite(value)]
    top = max(finite, default=1.0)
    table(
        ("after", "SQNR, dB", f"PyTorch {found.precision}", ""),
        [(name, _shown(ours), _shown(own), _bar(ours or 0.0, top)) for name, ours, own in pairs],
        title="error from block to block",
    )


def _db(rel_l2: float | None) -> float | None:
    if rel_l2 is None:
        return None
    return -20 * math.log10(rel_l2) if rel_l2 > 0 else math.inf


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _bar(value: float, top: float) -> str:
    share = min(1.0, value / top) if top > 0 and math.isfinite(value) else 1.0
    return "#" * max(0, round(BAR * share))
