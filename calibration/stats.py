"""`Stats`: what one calibration saw, as a file that says what it belongs to.

A safetensors file: histograms as uint16 counts, covariances as float16 correlations with float32 variances (their
triangle: 0.2 GB for the full model). `ranges.json`, which people read, stands beside it and names it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ConfigError, first_line
from .statistics import Histogram, Moments

FORMAT = 1
METADATA = "fvexport.calibration"
MAX_COUNT = 65535


@dataclass(frozen=True)
class Key:
    """What statistics belong to.

    Attributes:
        checkpoint: SHA-256 of the encoder's tensors.
        height, width: in pixels.
        data: fingerprint of the pictures.
        samples: how many pictures.
        rows: positions sampled of each activation and picture.
    """

    checkpoint: str
    height: int
    width: int
    data: str
    samples: int
    rows: int

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

    def check(self, checkpoint_sha256: str, height: int, width: int) -> None:
        """Raises ConfigError where these are statistics of another checkpoint or resolution, or not finished."""
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
        if self.done < self.key.samples:
            raise ConfigError(
                f"this calibration stopped after {self.done} of {self.key.samples} pictures; run it again, it goes on"
            )

    def save(self, path: Path) -> None:
        """Writes the file beside `path` and renames it; a killed run leaves the old one."""
        tensors: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        for name, h in self.histograms.items():
            tensors |= {f"{name}/low": h.low, f"{name}/high": h.high, f"{name}/limit": h.limit}
            shrink = (h.counts.amax(1, keepdim=True) / MAX_COUNT).clamp_min(1)  # uint16 holds what 64 pictures give
            tensors[f"{name}/counts"] = (h.counts / shrink).round().to(torch.uint16)
            tensors[f"{name}/shrink"] = shrink[:, 0].clone()
        for name, m in self.moments.items():
            rows[name] = m.rows
            covariance = m.covariance
            variance = covariance.diagonal().clamp_min(0)
            index = torch.tril_indices(len(variance), len(variance))
            scale = variance.clamp_min(1e-30).rsqrt()
            correlation = (covariance[index[0], index[1]] * scale[index[0]] * scale[index[1]]).to(torch.float16)
            tensors |= {f"{name}/mean": m.mean, f"{name}/variance": variance, f"{name}/correlation": correlation}
        about = {
            "format": FORMAT, "key": asdict(self.key), "source": self.source, "done": self.done, "amax": self.amax,
            "rows": rows, "variant": self.variant, "checkpoint_source": self.checkpoint_source,
        }  # fmt: skip
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            contiguous = {k: v.contiguous() for k, v in tensors.items()}
            save_file(contiguous, scratch, metadata={METADATA: json.dumps(about)})
            scratch.replace(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise ConfigError(f"cannot write {path} ({first_line(error)})") from None
        finally:
            scratch.unlink(missing_ok=True)

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
            for name in sorted(n.removesuffix("/counts") for n in tensors if n.endswith("/counts")):
                counts = tensors[f"{name}/counts"].float() * tensors[f"{name}/shrink"][:, None]
                parts = (tensors[f"{name}/{part}"] for part in ("low", "high", "limit"))
                stats.histograms[name] = Histogram(*parts, counts)
            for name, rows in about["rows"].items():
                covariance = _unpack(tensors[f"{name}/correlation"], tensors[f"{name}/variance"])
                mean = tensors[f"{name}/mean"]
                stats.moments[name] = Moments(rows, mean, torch.zeros_like(mean).double(), covariance.mul_(rows))
        except ConfigError:
            raise
        except FileNotFoundError:
            raise ConfigError(f"{path} is gone, which holds the statistics; {again}") from None
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise ConfigError(f"{path} holds no calibration statistics ({first_line(error)}); {again}") from None
        return stats


def _unpack(correlation: Tensor, variance: Tensor) -> Tensor:
    size = len(variance)
    index = torch.tril_indices(size, size)
    deviation = variance.sqrt()
    outer = torch.zeros(size, size)
    outer[index[0], index[1]] = correlation.float() * deviation[index[0]] * deviation[index[1]]
    outer.T[index[0], index[1]] = outer[index[0], index[1]]
    return outer
