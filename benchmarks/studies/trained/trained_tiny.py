"""A real task for the tiny FastViTHD: which of 32 characters is drawn over a photograph.

    python -m fvexport.benchmarks.studies.trained.trained_tiny                      # accuracy of the committed weights
    python -m fvexport.benchmarks.studies.trained.trained_tiny --out model.safetensors   # train them anew

FP16 and INT8 are judged by what they do to an answer, and seeded weights give none. Here the mean
over visual tokens goes through one linear layer, the head; `accuracy` takes any function from
pixels to tokens, so eager models, ONNX files and engines are all measured on the same images.
Test images show photographs that no training image does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from ....core.errors import ArtifactError, ConfigError, UnavailableError
from ....core.progress import Progress, silent
from ....encoder.checkpoint import load_encoder
from ....encoder.config import get_variant
from ....encoder.fastvithd import FastViTHD, LayerScale
from ....encoder.image import load_image, sample_images

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Labels: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Head: TypeAlias = tuple[Floats, Floats]
"""Weight (classes, C) and bias (classes,)."""

CLASSES: tuple[str, ...] = tuple("23456789ABCDEFGHJKLMNPQRSTUVWXYZ")
"""0, 1, O and I are left out: in this typeface they are too much alike."""

RESOLUTION = 128
"""Pixels per side; 2 x 2 visual tokens."""

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        *("astronaut", "brick", "camera", "clock_motion", "grass", "hubble_deep_field", "ihc", "moon"),
        *("motorcycle_left", "motorcycle_right", "retina"),
    ),
    "test": ("chelsea", "coffee", "coins", "gravel", "rocket"),
}
"""Backgrounds of each split. The two views of the motorcycle show one scene, so they stay together."""

TRAINED = Path(__file__).parents[3] / "tests" / "data" / "trained"
"""The committed weights; they are part of the repository, not of the installed package."""

ENCODER_FILE, HEAD_FILE, CONFIG_FILE = "model.safetensors", "head.safetensors", "config.json"

PHASES = ((64, 5000), (RESOLUTION, 2500))
"""(Resolution, batches) of training: small frames first, which cost a quarter."""
BATCH, RAMP, LEARNING_RATE = 32, 40_000, 3e-3


# --- the task ----------------------------------------------------------------------------------


def example(split: str, index: int, *, seed: int = 0, resolution: int = RESOLUTION) -> tuple[Pixels, int]:
    """Image `index` of a split, which depends on nothing else: RGB (H, W, 3) and its label.

    A light, translucent character, turned, on a darkened crop of a photograph, with grain. The first `RAMP` training
    images grow from easy to as hard as the rest. `resolution` cuts the frame, not the character.

    Raises ConfigError for an unknown split or a negative number, UnavailableError without the photographs.
    """
    if split not in PHOTOGRAPHS or index < 0 or seed < 0:
        raise ConfigError(
            f"examples are train or test, counted from 0, of a seed from 0; found {split!r}, {index}, seed {seed}"
        )
    rng = np.random.Generator(np.random.PCG64([seed, list(PHOTOGRAPHS).index(split), index]))
    hard = min(1.0, index / RAMP) if split == "train" else 1.0
    label = int(rng.integers(len(CLASSES)))
    image = _background(split, rng, resolution) * np.float32(rng.uniform(0.2, 0.7))  # (H, W, 3)
    mask = _glyph(CLASSES[label], int(rng.integers(28, 53)))
    mask = mask.rotate(rng.uniform(-1, 1) * (5 + 20 * hard), Image.Resampling.BICUBIC, expand=True)
    top, left = (int(rng.integers(resolution - side + 1)) for side in (mask.height, mask.width))
    opacity = rng.uniform(0.9 - 0.45 * hard, 1) / 255 * np.asarray(mask, np.float32)[:, :, None]  # (h, w, 1)
    patch = image[top : top + mask.height, left : left + mask.width]
    patch += opacity.astype(np.float32) * (rng.integers(127, 256, 3).astype(np.float32) - patch)
    image += np.float32(rng.uniform(0, 20 * hard)) * rng.standard_normal((resolution, resolution, 1), np.float32)
    return np.rint(image.clip(0, 255)).astype(np.uint8), label


def labels_and_pixels(
    split: str, count: int, start: int = 0, *, seed: int = 0, resolution: int = RESOLUTION
) -> tuple[Labels, Pixels]:
    """Images `start` to `start + count` of a split: labels (B,) and pixels (B, 3, H, W)."""
    labels = np.empty(count, np.int64)
    pixels = np.empty((count, 3, resolution, resolution), np.uint8)
    for i in range(count):
        image, labels[i] = example(split, start + i, seed=seed, resolution=resolution)
        pixels[i] = image.transpose(2, 0, 1)
    return labels, pixels


def _background(split: str, rng: np.random.Generator, resolution: int) -> Floats:
    names = PHOTOGRAPHS[split]
    photograph = _photograph(names[int(rng.integers(len(names)))])
    side = int(rng.integers(resolution // 2, 2 * resolution + 1))
    left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    return np.array(photograph.resize((resolution, resolution), Image.Resampling.BILINEAR, box), np.float32)


@cache
def _photograph(name: str) -> Image.Image:
    found = sample_images()
    if name not in found:
        raise UnavailableError(f"the photograph {name} comes with scikit-image: pip install -U scikit-image")
    return load_image(found[name])


@cache
def _glyph(character: str, size: int) -> Image.Image:
    """Coverage 0..255 of a character in Pillow's own typeface, cut to its box."""
    try:
        font = ImageFont.load_default(size)
    except (TypeError, ImportError):  # before 10.1, or built without FreeType
        raise UnavailableError("Pillow has no scalable typeface: pip install -U pillow") from None
    left, top, right, bottom = font.getbbox(character)
    mask = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), character, fill=255, font=font)
    return mask


# --- judging features --------------------------------------------------------------------------


def load_head(path: Path | None = None) -> Head:
    """Weight (classes, C) and bias (classes,) of the head that was trained with the encoder.

    Args:
        path: the file; that of the repository by default.

    Raises:
        ArtifactError: no such file, as in an installed package.
    """
    path = path or TRAINED / HEAD_FILE
    if not path.is_file():
        raise ArtifactError(f"no trained head at {path}: give its path, or run from a checkout of the repository")
    tensors = load_file(path)
    return tensors["weight"], tensors["bias"]


def right(
    features: Callable[[Pixels], np.ndarray[Any, Any]],
    count: int = 4000, *, head: Head | None = None, batch: int = 100, split: str = "test", start: int = 0,
) -> np.ndarray[Any, np.dtype[np.bool_]]:  # fmt: skip
    """Which of `count` images are told right (count,); two of these, compared, are a paired test.

    Args:
        features: pixels (B, 3, H, W), uint8 -> tokens (B, N, C) in any floating point.
        count: images.
        head: as `load_head` gives it; that of the repository by default.
        batch: images per call; the last call may get fewer.
        split: which images.
        start: index of the first.
    """
    weight, bias = head or load_head()
    told: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    for first in range(start, start + count, batch):
        labels, pixels = labels_and_pixels(split, min(batch, start + count - first), first)
        tokens = np.asarray(features(pixels), np.float32)
        told.append((tokens.mean(1) @ weight.T + bias).argmax(1) == labels)
    return np.concatenate(told)


def accuracy(
    features: Callable[[Pixels], np.ndarray[Any, Any]],
    count: int = 4000, *, head: Head | None = None, batch: int = 100, split: str = "test", start: int = 0,
) -> float:  # fmt: skip
    """Share of `count` images that are told right, 0 to 1; arguments as for `right`."""
    return float(right(features, count, head=head, batch=batch, split=split, start=start).mean())


def eager(encoder: FastViTHD) -> Callable[[Pixels], np.ndarray[Any, Any]]:
    """A PyTorch encoder on the CPU as what `accuracy` takes."""

    @torch.inference_mode()
    def features(pixels: Pixels) -> np.ndarray[Any, Any]:
        x = torch.from_numpy(pixels)
        if not encoder.uint8_input:
            x = x.to(encoder.first_conv.weight.dtype) / 255
        return encoder(x.contiguous(memory_format=torch.channels_last)).float().numpy()

    return features


# --- training ----------------------------------------------------------------------------------


def train(
    *, phases: Sequence[tuple[int, int]] = PHASES, seed: int = 0, progress: Progress = silent
) -> tuple[FastViTHD, nn.Linear]:
    """The encoder (eval, train form) and its head, after seeing each training image once.

    AdamW, one cycle, label smoothing. `progress` is told the loss, smoothed over some 50 batches, in batches done.
    """
    torch.manual_seed(seed)
    encoder = FastViTHD(get_variant("tiny"))
    for module in encoder.modules():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, 0.2)  # not 1e-5: every block is to count within minutes
    head = nn.Linear(encoder.config.out_channels, len(CLASSES))
    encoder.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.02, fused=True)
    frames = [resolution for resolution, steps in phases for _ in range(steps)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(frames), pct_start=0.15)
    smoothed = math.log(len(CLASSES))
    for step, resolution in enumerate(frames):
        labels, pixels = labels_and_pixels("train", BATCH, step * BATCH, seed=seed, resolution=resolution)
        x = torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last) / 255
        loss = F.cross_entropy(head(encoder(x).mean(1)), torch.from_numpy(labels), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        schedule.step()
        smoothed += 0.02 * (loss.item() - smoothed)
        progress(f"training at {resolution} px, loss {smoothed:.3f}", step + 1, len(frames))
    return encoder.eval(), head


def save(encoder: FastViTHD, head: nn.Linear, path: Path) -> None:
    """Writes the encoder, in timm's names, to `path`; beside it the head, and how images are prepared."""
    # Trained on levels / 255; timm's published checkpoint, whose mean and std would be assumed, was not.
    prepared = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    config = {"architecture": "fastvit_mci3", "pretrained_cfg": {"input_size": [3, RESOLUTION, RESOLUTION], **prepared}}
    path.with_name(CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: t.detach().contiguous() for name, t in encoder.state_dict().items()}, path)
    save_file({name: t.detach().contiguous() for name, t in head.state_dict().items()}, path.with_name(HEAD_FILE))


def _tell(task: str, done: int, total: int | None) -> None:
    if done % 100 == 0 or done == total:
        click.echo(f"{done:5d} of {total}  {task}")


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--out", type=click.Path(path_type=Path), help="Train, and write the encoder here, the head beside it.")
@click.option("--weights", type=click.Path(path_type=Path), default=TRAINED / ENCODER_FILE, help="Encoder to judge.")
@click.option("--phases", default=",".join(f"{r}:{n}" for r, n in PHASES), show_default=True, help="RES:BATCHES,...")
@click.option("--seed", default=0, show_default=True, help="Of the first weights and the training images.")
@click.option("--images", default=4000, show_default=True, help="Test images to judge on.")
@click.option("--threads", default=1, show_default=True)
def main(out: Path | None, weights: Path, phases: str, seed: int, images: int, threads: int) -> None:
    """Trains if asked to, then prints the accuracy on test images."""
    torch.set_num_threads(threads)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not re.fullmatch(r"\d+:[1-9]\d*(,\d+:[1-9]\d*)*", phases):
            raise click.BadParameter(f"{phases!r} is not RES:BATCHES,... such as 64:5000,128:2500")
        plan = [(int(r), int(n)) for r, n in (phase.split(":") for phase in phases.split(","))]
        save(*train(phases=plan, seed=seed, progress=_tell), out)
        weights = out
    found = accuracy(eager(load_encoder(weights, variant="tiny")), images, head=load_head(weights.with_name(HEAD_FILE)))
    click.echo(f"{found:.2%} of {images} test images")


if __name__ == "__main__":
    main()
