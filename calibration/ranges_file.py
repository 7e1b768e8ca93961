"""`Stats`: the statistics of one calibration, and their file, which records what they belong to.

A safetensors file: histograms as counts, covariances as float16 correlations (their triangle: 0.2 GB for the full
model). Until a run is finished they are stored exactly, so that stopping and resuming does not change its result. The
readable `ranges.json` beside it names this file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import ConfigError, first_line
from ..core.output_path import put_file, scratch_beside
from .histograms import Histogram, Moments

FORMAT = 1
METADATA = "fvexport.calibration"
MAX_COUNT = 65535
"""Largest count of uint16. Only a whole tensor's histogram, which is small, has larger ones."""

FAINT = 1e-30
"""Sums of squares under which a channel is constant but for rounding; it is treated as uncorrelated."""


UNREADABLE = (
    OSError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, safetensors.SafetensorError
)  # fmt: skip
"""What reading a damaged file, or another one, can raise."""


@dataclass(frozen=True)
class Key:
    """Identity of a calibration: its statistics are valid for this alone.

    Attributes:
        checkpoint: SHA-256 of the encoder's tensors.
        height, width: in pixels.
        data: fingerprint of the pictures.
        samples: how many pictures.
        rows: positions sampled of each activation and picture.
        framing: how pictures were prepared; see `PreprocessConfig.key`.
    """

    checkpoint: str
    height: int
    width: int
    data: str
    samples: int
    rows: int
    framing: str = "pad"

    @property
    def digest(self) -> str:
        """A name for the cache."""
        text = json.dumps(asdict(self) | {"format": FORMAT}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Stats:
    """Statistics of named activations: `<module>` is a module's output, `<module>:in` its input.

    Attributes:
        key: what they belong to.
        source: the pictures, as the user named them.
        done: pictures seen so far.
        histograms: of the tensors that may be quantized, per channel where channels can be equalized.
        moments: of the inputs of the layers that may be quantized.
        amax: largest absolute value of every activation that the model stores.
        variant: the architecture's name.
        checkpoint_source: where the weights came from.
    """

    key: Key
    source: str
    done: int = 0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    amax: dict[str, float] = field(default_factory=dict)
    variant: str = ""
    checkpoint_source: str = ""

    def check(self, checkpoint_sha256: str, height: int, width: int, framing: str) -> None:
        """Raises ConfigError if these are statistics of another checkpoint, size or preprocessing, or unfinished."""
        if self.key.checkpoint != checkpoint_sha256:
            raise ConfigError(
                f"these ranges belong to another checkpoint ({self.checkpoint_source}, sha256 "
                f"{self.key.checkpoint[:12]}…, not {checkpoint_sha256[:12]}…); run `fvexport calibrate` for this one"
            )
        if (self.key.height, self.key.width) != (height, width):
            raise ConfigError(
                f"these ranges were taken at {self.key.height}x{self.key.width}, the export is at {height}x{width}; "
                "run `fvexport calibrate` at that --res"
            )
        if self.key.framing != framing:
            raise ConfigError(
                f"these ranges were taken on images prepared as {self.key.framing}, and this checkpoint "
                f"prepares them as {framing}; run `fvexport calibrate` again"
            )
        if self.done < self.key.samples:
            raise ConfigError(
                f"this calibration stopped after {self.done} of {self.key.samples} pictures; run it again to resume"
            )

    def settle(self) -> None:
        """Rounds the covariances of a finished run as its file does: both then quantize alike, to the last bit."""
        for name, moments in self.moments.items():
            self.moments[name] = _unpack(moments.rows, _pack(moments, exact=False))

    def save(self, path: Path) -> None:
        """Writes the file beside `path` and renames it; a killed run leaves the old one."""
        try:
            with scratch_beside(path) as scratch:
                self.write(scratch)
                put_file(scratch, path)
        except OSError as error:
            raise ConfigError(f"cannot write {path} ({first_line(error)})") from None

    def write(self, path: Path) -> None:
        """Writes the file itself; raises OSError."""
        tensors: dict[str, Tensor] = {}
        for name, h in self.histograms.items():
            tensors |= {f"{name}/low": h.low, f"{name}/high": h.high, f"{name}/limit": h.limit}
            small = bool(h.counts.amax() <= MAX_COUNT)
            tensors[f"{name}/counts"] = h.counts.to(torch.uint16) if small else h.counts
        for name, m in self.moments.items():
            parts = _pack(m, exact=self.done < self.key.samples)
            tensors |= {f"{name}/{part}": tensor for part, tensor in parts.items()}
        about = {
            "format": FORMAT, "key": asdict(self.key), "source": self.source, "done": self.done, "amax": self.amax,
            "histograms": list(self.histograms), "rows": {name: m.rows for name, m in self.moments.items()},
            "variant": self.variant, "checkpoint_source": self.checkpoint_source,
        }  # fmt: skip
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={METADATA: json.dumps(about)})
        except safetensors.SafetensorError as error:
            match = re.search(r"os error (\d+)", str(error))
            number = int(match[1]) if match else errno.EIO
            raise OSError(number, os.strerror(number)) from None
        path.chmod(mode)  # safetensors creates files that only the user can read

    @classmethod
    def load(cls, path: Path) -> Stats:
        """Reads what `save` wrote; raises ConfigError for anything else."""
        again = "run `fvexport calibrate` again"
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {})[METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if about["format"] != FORMAT:
                raise ConfigError(f"{path} is of another version of fvexport; {again}")
            stats = cls(
                Key(**about["key"]), about["source"], about["done"], amax=about["amax"],
                variant=about["variant"], checkpoint_source=about["checkpoint_source"],
            )  # fmt: skip
            for name in about["histograms"]:
                low, high, limit, counts = (tensors[f"{name}/{part}"] for part in ("low", "high", "limit", "counts"))
                stats.histograms[name] = Histogram(low, high, limit, counts.float())
            for name, rows in about["rows"].items():
                parts = {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}
                stats.moments[name] = _unpack(rows, parts)
            if not 0 <= stats.done <= stats.key.samples:
                raise ValueError(f"{stats.done} of {stats.key.samples} pictures")
        except ConfigError:
            raise
        except FileNotFoundError:
            raise ConfigError(f"{path} is gone, which holds the statistics; {again}") from None
        except UNREADABLE as error:
            raise ConfigError(f"{path} holds no calibration statistics ({first_line(error)}); {again}") from None
        return stats


def _pack(moments: Moments, *, exact: bool) -> dict[str, Tensor]:
    """The lower triangle, exactly or as correlations; these come out of `_unpack` and `_pack` as they went in."""
    lower = torch.tril_indices(len(moments.shift), len(moments.shift))
    if exact:
        return {"shift": moments.shift, "total": moments.total, "outer": moments.outer[lower[0], lower[1]]}
    centred = moments.centred
    power = centred.diagonal().clamp_min(0)
    scale = torch.where(power > FAINT, power.rsqrt(), 0.0)
    correlation = centred[lower[0], lower[1]] * scale[lower[0]] * scale[lower[1]]
    # Of nearly constant channels it is rounding, which can pass 1 by far.
    return {"mean": moments.mean, "power": power, "correlation": correlation.clamp_(-1, 1).to(torch.float16)}


def _unpack(rows: int, parts: dict[str, Tensor]) -> Moments:
    """The inverse of `_pack`."""
    exact = "outer" in parts
    size = len(parts["shift" if exact else "mean"])
    lower = torch.tril_indices(size, size)
    if exact:
        values = parts["outer"]
    else:
        deviation = parts["power"].sqrt()
        values = parts["correlation"].float() * deviation[lower[0]] * deviation[lower[1]]
    outer = torch.zeros(size, size)
    outer[lower[0], lower[1]] = values
    outer.T[lower[0], lower[1]] = values
    if exact:
        return Moments(rows, parts["shift"], parts["total"], outer)
    outer.diagonal().copy_(parts["power"])
    return Moments(rows, parts["mean"], torch.zeros(size, dtype=torch.float64), outer)
