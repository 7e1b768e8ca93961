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

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import ConfigError, first_line
from ..core.input_file import check_regular, parse_json
from ..core.output_path import put_file, scratch_beside
from ..core.records import parse, plain
from ..core.utf8_path import utf8_path
from .histograms import BINS, TENSOR_BINS, Histogram, Moments
from .ranges_record import StatisticsHeader

FORMAT = 1
METADATA = "fvexport.calibration"
MAX_COUNT = 65535
"""Largest count of uint16. Only a whole tensor's histogram, which is small, has larger ones."""

FAINT = 1e-30
"""Sums of squares under which a channel is constant but for rounding; it is treated as uncorrelated."""


UNREADABLE = (OSError, LookupError, RuntimeError, MemoryError, ValueError, safetensors.SafetensorError)
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
            with utf8_path(path) as file:
                save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={METADATA: json.dumps(about)})
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
            check_regular(path)
            with utf8_path(path) as name, safetensors.safe_open(name, framework="pt") as file:
                about = parse_json((file.metadata() or {})[METADATA])
                if isinstance(about, dict) and isinstance(about.get("format"), int) and about["format"] != FORMAT:
                    raise ConfigError(f"{path} is of another version of fvexport; {again}")
                header = parse(about, StatisticsHeader)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            stats = cls(
                Key(**plain(header.key)), header.source, header.done, amax=header.amax,
                variant=header.variant, checkpoint_source=header.checkpoint_source,
            )  # fmt: skip
            for name in header.histograms:
                stats.histograms[name] = _histogram(_Parts(tensors, name))
            for name, rows in header.rows.items():
                moments = stats.moments[name] = _unpack(rows, _moments(_Parts(tensors, name)))
                if not bool(torch.isfinite(moments.mean).all()):
                    raise ValueError(f"the mean of {name} is not finite")
        except ConfigError:
            raise
        except FileNotFoundError:
            raise ConfigError(f"{path} is gone, which holds the statistics; {again}") from None
        except UNREADABLE as error:
            raise ConfigError(f"{path} holds no calibration statistics ({first_line(error)}); {again}") from None
        return stats


class _Parts:
    """The tensors that a file has for one activation."""

    def __init__(self, tensors: dict[str, Tensor], name: str) -> None:
        self._tensors, self._name = tensors, name

    def __contains__(self, part: str) -> bool:
        return f"{self._name}/{part}" in self._tensors

    def get(self, part: str, *dtypes: torch.dtype, shapes: tuple[tuple[int, ...], ...] = ()) -> Tensor:
        """A tensor of finite values; raises ValueError unless it has one of these dtypes and shapes.

        Without shapes, any vector will do.
        """
        where = f"{self._name}/{part}"
        if where not in self._tensors:
            raise ValueError(f"{where} is missing")
        tensor = self._tensors[where]
        fits = tuple(tensor.shape) in shapes if shapes else tensor.ndim == 1 and len(tensor) > 0
        if tensor.dtype not in dtypes or not fits:
            wanted = " or ".join(str(list(shape)) for shape in shapes) or "a vector"
            raise ValueError(f"{where} is {tensor.dtype} {list(tensor.shape)}, not {dtypes[0]} {wanted}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where} has values that are not finite")
        return tensor


def _histogram(parts: _Parts) -> Histogram:
    limit = parts.get("limit", torch.float32)
    channels = len(limit)
    low, high = (parts.get(part, torch.float32, shapes=((channels,),)) for part in ("low", "high"))
    shapes = (channels, BINS), (channels, TENSOR_BINS)
    counts = parts.get("counts", torch.uint16, torch.float32, shapes=shapes).float()
    if bool((low > high).any()) or bool((limit < 0).any()) or bool((counts < 0).any()):
        raise ValueError("a histogram has a negative count or limit, or its extremes in the wrong order")
    return Histogram(low, high, limit, counts)


def _moments(parts: _Parts) -> dict[str, Tensor]:
    """What `_pack` made; the triangle's size is checked before `_unpack` allocates the square."""
    exact = "outer" in parts
    first = parts.get("shift" if exact else "mean", torch.float32)
    vector, triangle = ((len(first),),), ((len(first) * (len(first) + 1) // 2,),)
    if exact:
        total = parts.get("total", torch.float64, shapes=vector)
        return {"shift": first, "total": total, "outer": parts.get("outer", torch.float32, shapes=triangle)}
    power = parts.get("power", torch.float32, shapes=vector)
    correlation = parts.get("correlation", torch.float16, shapes=triangle)
    if bool((power < 0).any()) or bool((correlation.abs() > 1).any()):
        raise ValueError("a variance is negative, or a correlation above 1")
    return {"mean": first, "power": power, "correlation": correlation}


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
