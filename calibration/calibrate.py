"""`fvexport calibrate`: photographs in, `ranges.json` out.

The JSON is for people and other tools: what it belongs to, and the range of each tensor that may be quantized. The
statistics that an export needs besides stand in a safetensors file beside it, which it names with its SHA-256.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..core.errors import ConfigError, first_line
from ..core.hashing import file_sha256
from ..core.input_file import check_regular, read_json, read_text
from ..core.output_path import check_file, os_errors, put_file, remove_leftovers, scratch_beside
from ..core.phrases import printable
from ..core.progress import Progress, silent
from ..core.threads import torch_threads
from ..encoder.checkpoint import Checkpoint, CheckpointInfo
from ..encoder.preprocess import Preprocessor
from ..encoder.reparameterize import reparameterize
from .calibration_options import DEFAULT_SAMPLES, CalibrationOptions, Method
from .equalize import QUANTILE
from .observe import observe
from .photos import calibration_data
from .ranges import choose_range
from .ranges_file import UNREADABLE, Stats
from .ranges_record import Ranges, RangesFile, SkippedImage, TensorRange

AGAIN = "run `fvexport calibrate` again"
ORPHANS = "orphans"


@dataclass(frozen=True)
class CalibrationReport:
    """What `calibrate` did.

    Attributes:
        out: the JSON file.
        checkpoint: the weights they belong to.
        stats: all statistics.
        ranges: of the tensors that may be quantized.
        method: how they were chosen.
        seconds: for all of it.
        notices: sentences that a user should read.
        skipped: (file, reason) of pictures that could not be used.
    """

    out: Path
    checkpoint: CheckpointInfo
    stats: Stats
    ranges: list[TensorRange]
    method: Method
    seconds: float
    notices: list[str]
    skipped: list[tuple[str, str]]

    @property
    def fp16_peak(self) -> tuple[str, float]:
        """The largest activation: FP16 ends at 65504."""
        return max(self.stats.amax.items(), key=lambda item: item[1])

    @property
    def record(self) -> Ranges:
        """What is written and printed."""
        return Ranges(
            **asdict(self.stats.key),
            source=self.stats.source,
            variant=self.stats.variant,
            checkpoint_source=self.stats.checkpoint_source,
            method=self.method,
            ranges={row.tap: row for row in self.ranges},
            amax=self.stats.amax,
            skipped=tuple(SkippedImage(image=name, reason=reason) for name, reason in self.skipped),
            notices=tuple(self.notices),
        )


@torch_threads()
def calibrate(
    checkpoint: Checkpoint, out: str | os.PathLike[str], *, height: int, width: int,
    options: CalibrationOptions | None = None, force: bool = False, cache: Path | None = None,
    progress: Progress = silent,
) -> CalibrationReport:  # fmt: skip
    """Observes the fused encoder on photographs and writes its ranges.

    Args:
        checkpoint: the weights.
        out: the JSON file; the statistics go beside it.
        height, width: of the pictures as the encoder sees them.
        options: pictures and method.
        force: replace a file that stands at `out`.
        cache: folder of unfinished runs, which go on; None for the user's cache folder.
        progress: called as pictures are done.

    Raises:
        ArtifactError: `out` exists or cannot be written.
        ConfigError: it is no .json file, or activations are not finite.
        ImageError: no usable pictures.
    """
    start = time.perf_counter()
    options = options or CalibrationOptions()
    path = Path(out)
    _check_place(path, force)
    checkpoint.encoder.config.check_resolution(height, width)
    data = calibration_data(options.calib, options.samples or DEFAULT_SAMPLES, seed=options.seed)
    frame = Preprocessor(height, width, checkpoint.info.preprocessing)
    progress("fuse", 0, None)
    fused = reparameterize(checkpoint.encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stats = observe(fused, checkpoint.info, data, frame, cache=cache, progress=progress)
    report = CalibrationReport(
        path, checkpoint.info, stats, tensor_ranges(stats, options.method), options.method,
        time.perf_counter() - start, checkpoint.info.notices + list(data.notices), list(data.skipped),
    )  # fmt: skip
    write_ranges(report, force=force)
    return report


def _check_place(path: Path, force: bool) -> None:
    """Raises ConfigError or ArtifactError where `calibrate` could not write in the end."""
    if path.suffix != ".json":
        raise ConfigError(f"--out must name a .json file; found {path}")
    if printable(path.name) != path.name:  # the file names its statistics, which get a similar name
        raise ConfigError(f"the name of {path} is not UTF-8; choose another --out")
    check_file(path, force=force)
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; make it, or choose another --out")


def tensor_ranges(stats: Stats, method: Method) -> list[TensorRange]:
    """The range of every tensor that some target quantizes, as one scale would have to cover it."""
    rows = []
    for tap, histogram in stats.histograms.items():
        name = tap.removesuffix(":in")
        before_gelu = tap == name and name.endswith("fc1")
        chosen = choose_range(histogram.merged(), method, symmetric=False, before_gelu=before_gelu)
        size = histogram.quantile(QUANTILE)
        alive = size[size > 0]
        spread = float(alive.max() / alive.log().mean().exp()) if len(size) > 1 and len(alive) else None
        low, high = float(histogram.low.min()), float(histogram.high.max())
        rows.append(
            TensorRange(tap=tap, low=low, high=high, chosen_low=chosen.low, chosen_high=chosen.high, spread=spread)
        )
    return rows


def write_ranges(report: CalibrationReport, *, force: bool = True) -> None:
    """Writes the statistics, then the JSON that names them; an old pair stands until the new one does.

    Raises ArtifactError if they cannot be written, or, without `force`, another run has written the JSON meanwhile.
    """
    path, old = report.out, _named_side(report.out)
    orphan: Path | None = None
    remove_leftovers(path, lambda folder: _remove_orphan(path, folder))
    with os_errors(path), scratch_beside(path) as scratch:
        try:
            report.stats.write(scratch)
            digest = file_sha256(scratch)
            side = path.with_name(f"{path.stem}-{digest[:12]}.safetensors")
            content = report.record.to_dict() | {"statistics": {"file": side.name, "sha256": digest}}
            orphan = None if side.exists() else side
            _note_orphan(scratch.parent, orphan)
            put_file(scratch, side)
            scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            _note_orphan(scratch.parent, orphan, old)
            put_file(scratch, path, force=force)
            orphan = old
        finally:
            # Another run may have written the same statistics, and the JSON that names them, meanwhile.
            if orphan is not None and orphan != _named_side(path):
                with contextlib.suppress(OSError):
                    orphan.unlink()


def _note_orphan(scratch: Path, *sides: Path | None) -> None:
    """Says in a scratch folder which statistics no JSON may name if this run is killed now."""
    (scratch / ORPHANS).write_text("".join(f"{side.name}\n" for side in sides if side is not None), encoding="utf-8")


def _remove_orphan(path: Path, scratch: Path) -> None:
    """Removes the statistics that a killed run noted, unless the JSON names them."""
    with contextlib.suppress(OSError, ValueError):
        for name in read_text(scratch / ORPHANS).splitlines():
            if _is_side(path, name) and path.with_name(name) != _named_side(path):
                path.with_name(name).unlink(missing_ok=True)


def _is_side(path: Path, name: str) -> bool:
    """Whether `write_ranges` gives such a name to the statistics of `path`."""
    return re.fullmatch(re.escape(path.stem) + r"-[0-9a-f]{12}\.safetensors", name) is not None


def _named_side(path: Path) -> Path | None:
    """The statistics that a file which is to be replaced names, if that name is one that `write_ranges` gives."""
    try:
        name = RangesFile.from_dict(read_json(path)).statistics.file
    except UNREADABLE:
        return None
    return path.with_name(name) if _is_side(path, name) else None


def load_ranges(path: Path) -> Stats:
    """The statistics behind a file that `calibrate` wrote.

    Raises:
        ConfigError: not such a file, or its statistics are gone or changed.
    """
    try:
        statistics = RangesFile.from_dict(read_json(path)).statistics
        side = path.parent / Path(statistics.file).name
    except FileNotFoundError:
        raise ConfigError(f"no ranges at {path}; make them with `fvexport calibrate --out {path}`") from None
    except UNREADABLE as error:
        raise ConfigError(f"{path} is not what `fvexport calibrate` writes ({first_line(error)}); {AGAIN}") from None
    try:
        check_regular(side)
        found = file_sha256(side)
    except (FileNotFoundError, NotADirectoryError):
        gone = f"{side} is gone, which holds the statistics of {path}"
        raise ConfigError(f"{gone}; copy both files, or {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{side} cannot be read ({getattr(error, 'strerror', None) or error}); {AGAIN}") from None
    if found != statistics.sha256:
        raise ConfigError(f"{side} is not the file that {path} was written with; {AGAIN}")
    return Stats.load(side)
