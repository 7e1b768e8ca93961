"""The accelerated tiny model, every kernel interpreted, against the fused eager one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.reparameterize import reparameterize
from fvexport.kernels.accelerate import accelerate
from fvexport.kernels.dispatch import OPS
from fvexport.kernels.policy import kernel_for
from fvexport.kernels.stem import stem as own_stem

PRODUCTS = tuple(op for op in OPS if not op.startswith("depthwise"))  # these take most of the time: 700 steps a program


@pytest.mark.parametrize(
    ("kernels", "height", "width", "batch"),
    [
        (PRODUCTS, 64, 64, 1), (PRODUCTS, 64, 128, 2),
        pytest.param(OPS, 64, 64, 1, marks=pytest.mark.long), pytest.param(OPS, 192, 128, 1, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_same_features_in_half(kernels: tuple[str, ...], height: int, width: int, batch: int) -> None:
    model = load_checkpoint(variant="tiny").encoder
    x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).half()
    half = reparameterize(model).half()
    with torch.inference_mode():
        found, own, wanted = accelerate(half, kernels=kernels)(x), half(x), model.double()(x.double())
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < 2 * (own.double() - wanted).norm() / wanted.norm()


def test_same_features_by_the_rows_for_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of an architecture that is not here, interpreted."""
    used: set[str] = set()

    def chosen(*args: Any, arch: str, **kwargs: Any) -> str | None:
        kernel = kernel_for(*args, arch="sm_90", **kwargs)
        used.update([kernel] if kernel else [])
        return kernel

    monkeypatch.setattr(import_module("fvexport.kernels.accelerate"), "kernel_for", chosen)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).half()
    model = load_checkpoint(variant="tiny").encoder
    half = reparameterize(model).half()
    with torch.inference_mode():
        found, own, wanted = accelerate(half, kernels=PRODUCTS)(x), half(x), model.double()(x.double())
    assert {"linear_tma", "cublas"} <= used
    assert (found.double() - wanted).norm() < 2 * (own.double() - wanted).norm()


def test_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uint8 model's first layer reads the levels themselves, from planes."""
    source = load_checkpoint(variant="tiny").encoder
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    half = reparameterize(source, uint8_input=True).half()
    model = accelerate(half, kernels=("stem", "fast_gelu"))
    seen: list[torch.dtype] = []

    def stem(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(x.dtype)
        return own_stem(x, *args, **kwargs)

    monkeypatch.setattr(import_module("fvexport.kernels.accelerate"), "stem", stem)
    with torch.inference_mode():
        found, own, wanted = model(x), half(x), reparameterize(source).double()(x.double() / 255)
    assert seen == [torch.uint8]
    assert (found.double() - wanted).norm() < 2 * (own.double() - wanted).norm()
    assert model.input_layout(x.device) == torch.contiguous_format
    assert accelerate(half, kernels=()).input_layout(x.device) == torch.channels_last


def test_same_features_in_float32() -> None:
    model = reparameterize(load_checkpoint(variant="tiny").encoder)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, wanted = accelerate(model, kernels=PRODUCTS)(x), model.double()(x.double())
    assert (found.double() - wanted).norm() / wanted.norm() < 2e-6
