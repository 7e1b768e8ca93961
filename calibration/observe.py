"""Runs photographs through the fused model and keeps statistics of its activations.

One picture at a time, with hooks that keep extremes, histograms and covariances and let the activation go: memory does
not grow with the number of pictures. The state is saved as it goes; a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.cache import cache_folder, is_trusted, make_cache
from ..core.errors import ArtifactError, ConfigError
from ..core.output_path import put_file
from ..core.progress import Progress, silent
from ..encoder.checkpoint import CheckpointInfo
from ..encoder.exact import exact_float32
from ..encoder.fastvithd import Attention, FastViTHD, SqueezeExcite
from ..encoder.preprocess import Preprocessor
from .histograms import BINS, TENSOR_BINS, Histogram, Moments
from .photos import CalibrationData
from .policy import Row, row_of
from .ranges_file import Key, Stats

ROWS_IN_ALL = 16384
"""Positions sampled of each activation over all pictures: a few per row of the largest covariance."""
SAVE_SECONDS = 45.0
STORES = (nn.Conv2d, nn.Linear, nn.GELU, nn.LayerNorm, Attention, SqueezeExcite)
"""Modules whose output a runtime stores."""


def observe(
    model: FastViTHD, info: CheckpointInfo, data: CalibrationData, preprocessor: Preprocessor, *,
    cache: Path | None = None, progress: Progress = silent,
) -> Stats:  # fmt: skip
    """Statistics of every activation of `model` on `data`.

    Args:
        model: the fused encoder, on any device, in float32.
        info: of the checkpoint it came from.
        data: the pictures.
        preprocessor: frames them as inference does.
        cache: folder of resumable states; None for the user's cache. Where it cannot be written, nothing is resumed.
        progress: called as `calibrate` with the pictures done.

    Raises:
        ConfigError: an activation is infinite or undefined.
        ImageError: a picture can no longer be read.
    """
    if model.form != "fused":
        raise ConfigError("calibration needs the fused form; call reparameterize(model) first")
    rows = min(4096, max(256, -(-ROWS_IN_ALL // len(data))))
    framing = preprocessor.config.key
    key = Key(info.sha256, preprocessor.height, preprocessor.width, data.fingerprint, len(data), rows, framing)
    file = (cache or cache_folder("calibration")) / f"{key.digest}.safetensors"
    stats = _resumed(file, key) or Stats(key, data.source)
    # An earlier run may have known the same pictures and weights by other names.
    stats.source, stats.variant, stats.checkpoint_source = data.source, info.variant, info.source
    saved = time.monotonic()
    with _hooked(model, stats) as observer, torch.inference_mode(), exact_float32():
        while stats.done < len(data):
            progress("calibrate", stats.done, len(data))
            observer.begin(stats.done)
            model(model_input(model, data.pixels(stats.done, preprocessor), preprocessor))
            _check_finite(stats)
            stats.done += 1
            if stats.done == len(data):
                stats.settle()
            if stats.done == len(data) or time.monotonic() - saved > SAVE_SECONDS:
                _keep(stats, file)
                saved = time.monotonic()
    progress("calibrate", len(data), len(data))
    return stats


def observe_peaks(
    model: FastViTHD, data: CalibrationData, preprocessor: Preprocessor, *, progress: Progress = silent
) -> dict[str, float]:
    """Largest absolute value of every activation alone: what FP16's safety needs, in little time.

    Args and errors: see `observe`.
    """
    stats = Stats(Key("", preprocessor.height, preprocessor.width, data.fingerprint, len(data), 1), data.source)
    with _hooked(model, stats, peaks_only=True), torch.inference_mode(), exact_float32():
        for index in range(len(data)):
            progress("calibrate", index, len(data))
            model(model_input(model, data.pixels(index, preprocessor), preprocessor))
            _check_finite(stats)
    progress("calibrate", len(data), len(data))
    return stats.amax


def model_input(model: FastViTHD, levels: np.ndarray, preprocessor: Preprocessor) -> Tensor:
    """A picture's levels (3, H, W), uint8 -> (1, 3, H, W) as `model` takes them: on its device, normalized if float."""
    pixels = torch.from_numpy(levels)[None].to(next(model.parameters()).device)
    return pixels if model.uint8_input else preprocessor.config.normalize_tensor(pixels)


def _keep(stats: Stats, file: Path) -> None:
    """Saves the state. A disk that is full or read-only costs the chance to go on from here, not the calibration."""
    try:
        make_cache(file)
        stats.save(file)
        file.chmod(0o600)
    except (OSError, ArtifactError, ConfigError) as error:
        logging.getLogger("fvexport").info("this calibration could not be resumed: %s", error)


def _resumed(file: Path, key: Key) -> Stats | None:
    """The state that an earlier run left, if it is whole, this user's and of this key; a damaged one is set aside."""
    if not is_trusted(file):
        return None
    try:
        stats = Stats.load(file)
    except ConfigError:
        with suppress(OSError, ArtifactError):  # there is none, or another run took it away
            put_file(file, file.with_suffix(".damaged"))
        return None
    return stats if stats.key == key else None


def check_layers(stats: Stats, model: FastViTHD) -> None:
    """Raises ConfigError if statistics from a file lack a layer of the fused model, or have another width for it."""
    for name, module in model.named_modules():
        row = row_of(name)
        if row is None or not row.inputs:
            continue
        assert isinstance(module, nn.Conv2d | nn.Linear)
        leaving, entering = module.weight.shape[:2]
        moments = stats.moments.get(f"{name}:in")
        widths = {f"{name}:in": entering if _per_channel(row) else 1}
        if row.outputs:
            widths[name] = 1 if _per_channel(row) else leaving
        found = {tap: len(stats.histograms[tap].limit) for tap in widths if tap in stats.histograms}
        if found != widths or moments is None or len(moments.shift) != entering:
            raise ConfigError(f"the ranges do not fit the layer {name}; run `fvexport calibrate` again")


def _per_channel(row: Row) -> bool:
    """Whether a layer's input is measured by channel, and its output, if that is quantized, as a whole.

    A GELU is before fc2 and after fc1: those channels cannot be scaled.
    """
    return row.kind != "ConvFFN fc2"


def _check_finite(stats: Stats) -> None:
    for name, value in stats.amax.items():
        if not value < torch.inf:
            where = name.removesuffix(":in")
            raise ConfigError(
                f"the model's own activations are infinite or undefined at {where}: the checkpoint is damaged"
            )


class _Observer:
    """What the hooks write to."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats
        self.generator = torch.Generator()
        self.positions: dict[int, Tensor] = {}
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def begin(self, picture: int) -> None:
        """Positions depend on the picture alone, so that a resumed run samples the same."""
        self.generator.manual_seed(picture)
        self.positions.clear()

    def extremes(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the largest absolute value; returns low and high. A tensor seen twice in a row is measured once."""
        if self.last is None or self.last[0] is not x:
            # As it lies in memory: on a transposed view the same costs ten times as much.
            low, high = torch.aminmax(x.permute(0, 2, 3, 1) if x.ndim == 4 else x)
            self.last = x, low, high
        _, low, high = self.last
        self._keep(name, float(torch.maximum(-low, high)))
        return low, high

    def scores(self, name: str, attention: Attention, qkv: Tensor) -> None:
        """Keeps the largest product of a query and a key."""
        self._keep(name, _largest_score(qkv, attention))

    def _keep(self, name: str, peak: float) -> None:
        before = self.stats.amax.get(name, 0.0)
        self.stats.amax[name] = peak if math.isnan(peak) else max(before, peak)  # max() alone would drop NaN

    def sample(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, N, C) -> (n, C), the same positions for every tensor of a size."""
        count = x[0, 0].numel() if x.ndim == 4 else x.shape[1]
        if count not in self.positions:
            self.positions[count] = torch.randperm(count, generator=self.generator)[: self.stats.key.rows]
        index = self.positions[count].to(x.device)
        if x.ndim == 4:
            return x.flatten(2)[:, :, index].transpose(1, 2).reshape(-1, x.shape[1])
        return x[:, index].reshape(-1, x.shape[2])

    def histogram(self, name: str, x: Tensor, *, per_channel: bool, moments: bool) -> None:
        """Keeps extremes, counts and, where asked for, second moments."""
        low, high = self.extremes(name, x)
        rows = self.sample(x)
        channels = rows.shape[1] if per_channel else 1
        kept = self.stats.histograms.get(name)
        if kept is None:
            bins = BINS if per_channel else TENSOR_BINS
            kept = self.stats.histograms[name] = Histogram.empty(channels, bins)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            return  # reported by the caller, with the tensor's name
        if per_channel:
            each = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1, channels)
            kept.widen(each.amin(0), each.amax(0))
        else:
            kept.widen(low[None], high[None])
        kept.add(rows if per_channel else rows.reshape(-1, 1))
        if moments:
            self.stats.moments.setdefault(name, Moments.empty(rows.shape[1])).add(rows)


@contextmanager
def _hooked(model: FastViTHD, stats: Stats, *, peaks_only: bool = False) -> Iterator[_Observer]:
    """Hooks on every module of `model`, for as long as the block lasts."""
    observer = _Observer(stats)
    blocks = {name for name, _ in model.named_blocks()}
    handles: list[RemovableHandle] = []

    def on_input(module: nn.Module, see: Callable[[Tensor], object]) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: cast("None", see(args[0]) and None)))

    def on_output(module: nn.Module, see: Callable[[Tensor], object]) -> None:
        handles.append(module.register_forward_hook(lambda _m, _a, y: cast("None", see(y) and None)))

    for name, module in model.named_modules():
        row = None if peaks_only else row_of(name)
        if row is not None and row.inputs:
            on_input(module, partial(observer.histogram, f"{name}:in", per_channel=_per_channel(row), moments=True))
        if row is not None and row.outputs:
            on_output(module, partial(observer.histogram, name, per_channel=not _per_channel(row), moments=False))
        elif name in blocks or isinstance(module, STORES):
            on_output(module, partial(observer.extremes, name))
        if name.endswith(".mlp.conv"):
            on_input(module, partial(observer.extremes, f"{name}:in"))  # the residual stream
    for name, module in model.named_modules():
        if isinstance(module, Attention):  # after qkv's own hook, so that damage is reported there
            on_output(module.qkv, partial(observer.scores, f"{name}:scores", module))
    try:
        yield observer
    finally:
        observer.last = None
        for handle in handles:
            handle.remove()


def _largest_score(qkv: Tensor, attention: Attention) -> float:
    """The largest |q k^T * scale| of any head, one head at a time: all of them need a gigabyte at 2048 x 2048."""
    b, n, _ = qkv.shape
    q, k, _ = (t.reshape(b, n, -1, attention.head_dim) for t in qkv.chunk(3, dim=-1))
    peaks = [(q[:, :, head] @ k[:, :, head].transpose(1, 2)).abs().amax() for head in range(q.shape[2])]
    return float(torch.stack(peaks).amax()) * cast("float", attention.scale)
