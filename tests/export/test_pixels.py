"""Pixels are checked before any backend: what is taken gives the same features everywhere, the rest the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvexport.core.errors import ConfigError, FvexportError, ImageError
from fvexport.encoder.checkpoint import Checkpoint
from fvexport.encoder.config import FastViTHDConfig
from fvexport.encoder.preprocess_config import OPENAI_MEAN, OPENAI_STD, RELEASED, PreprocessConfig
from fvexport.export.artifact import Artifact
from fvexport.export.runtime import Encoder
from fvexport.export.runtime.pixels import ROUNDOFF, PixelRules

LEVELS = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), np.uint8)
FLOATS = LEVELS.astype(np.float32) / 255
CLIP = PreprocessConfig(mean=OPENAI_MEAN, std=OPENAI_STD)


def rules(config: PreprocessConfig = RELEASED, size: tuple[int, int] | None = (128, 128)) -> PixelRules:
    return PixelRules("it", config, FastViTHDConfig(), size)


REFUSED: dict[str, tuple[np.ndarray, str]] = {
    **{
        f"levels as {kind}": (LEVELS.astype(kind), f"found {kind}: convert levels to uint8")
        for kind in ("int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool", "complex64")
    },
    "levels as floats": (FLOATS * 255, "look like levels 0 to 255 in a floating type; convert them to uint8"),
    "normalized otherwise": (FLOATS * 2 - 1, r"from -1 to 1, and normalized ones from 0 to 1 for it .*mean 0, std 1"),
    "a little too bright": (FLOATS * np.float32(1.01), "and normalized ones from 0 to 1"),
    "NaN": (np.where(np.arange(128) == 5, np.nan, FLOATS), "not a number"),
    "infinite": (np.where(np.arange(128) == 5, -np.inf, FLOATS), "infinite"),
    "too large for float32": (FLOATS.astype(np.float64) * 1e300, "infinite"),
    "channels last": (np.moveaxis(LEVELS, 1, 3), r"move channels forward with transpose \(0, 3, 1, 2\)"),
    "one image": (LEVELS[0], r"add the axis of images with pixels\[None\]"),
    "one image, channels last": (np.moveaxis(LEVELS[0], 0, 2), "add the axis of images"),
    "grey": (LEVELS[:, :1], "three channels, RGB"),
    "alpha": (np.concatenate([LEVELS, LEVELS[:, :1]], 1), "three channels, RGB"),
    "five axes": (LEVELS[None], "three channels"),
    "another size": (LEVELS[..., :64, :64], "it takes 128x128 alone; found pixels of 64x64"),
    "sides exchanged": (LEVELS[..., :64], "it takes 128x128 alone; found pixels of 128x64"),
    "no images of no dtype": (LEVELS[:0].astype(np.int32), "found int32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_the_same_words(case: str) -> None:
    pixels, words = REFUSED[case]
    with pytest.raises(FvexportError, match=words) as by_array:
        rules().array(pixels)
    with pytest.raises(type(by_array.value)) as by_tensor:
        rules().tensor(torch.from_numpy(np.ascontiguousarray(pixels)))
    assert str(by_tensor.value) == str(by_array.value)


@pytest.mark.parametrize("shape", [(1, 3, 100, 64), (1, 3, 0, 64), (1, 3, 64, 63)])
def test_sizes_of_a_dynamic_file(shape: tuple[int, ...]) -> None:
    assert rules(size=None).array(np.zeros((1, 3, 64, 192), np.uint8)).shape == (1, 3, 64, 192)
    with pytest.raises(ConfigError):
        rules(size=None).array(np.zeros(shape, np.uint8))


def test_what_is_no_array() -> None:
    for value in (None, [[0.5]], np.uint8(3), "photo.jpg", np.ma.masked_array(LEVELS, LEVELS > 9)):
        with pytest.raises(ImageError, match=r"run takes a NumPy array .*found a .*: call the encoder itself"):
            rules().array(value)
        with pytest.raises(ImageError, match="run_tensor takes a torch tensor"):
            rules().tensor(value)
    with pytest.raises(ImageError, match="found a Tensor: call run_tensor"):
        rules().array(torch.from_numpy(LEVELS))
    dense = torch.zeros(1, 3, 128, 128)
    nested = torch.nested.nested_tensor(list(dense), layout=torch.strided)
    for tensor in (torch.zeros(1, 3, 128, 128, device="meta"), dense.to_sparse(), nested):
        with pytest.raises(ImageError, match="takes a dense torch tensor"):
            rules().tensor(tensor)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.copy().transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2),
        lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
        lambda x: np.moveaxis(np.moveaxis(x, 1, 3)[..., ::-1].copy()[..., ::-1], 3, 1),
        lambda x: x.astype(x.dtype.newbyteorder(">")),
        np.asfortranarray,
    ],
)
@pytest.mark.parametrize("pixels", [LEVELS, FLOATS, FLOATS.astype(np.float64)], ids=str)
def test_any_layout(pixels: np.ndarray, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    given = layout(pixels)
    given.setflags(write=False)
    found = rules().array(given)
    assert found.flags.c_contiguous and found.dtype.isnative
    np.testing.assert_array_equal(found, pixels.astype(np.uint8 if pixels is LEVELS else np.float32))


def test_nothing_is_copied_in_vain() -> None:
    for pixels in (LEVELS, FLOATS):
        assert rules().array(pixels) is pixels
        tensor = torch.from_numpy(pixels)
        assert rules().tensor(tensor).data_ptr() == tensor.data_ptr()


def test_bfloat16_of_numpy() -> None:
    """Which onnx brings, by ml_dtypes."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    found = rules().array(FLOATS.astype(bfloat16))
    assert found.dtype == np.float32 and np.abs(found - FLOATS).max() < 2**-8


def test_a_lazily_negated_tensor() -> None:
    negated = torch.complex(torch.from_numpy(FLOATS), torch.from_numpy(-FLOATS)).conj().imag
    assert negated.is_neg()
    assert np.array_equal(rules().tensor(negated).numpy(), FLOATS)


def test_gradients_end() -> None:
    assert not rules().tensor(torch.rand(1, 3, 128, 128, requires_grad=True)).requires_grad


@settings(max_examples=60, deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3), std=st.tuples(*[st.floats(0.1, 2)] * 3), dtype=st.sampled_from([*ROUNDOFF])
)
def test_every_level_is_in_range_in_every_floating_type(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: str
) -> None:
    config = PreprocessConfig(mean=mean, std=std)  # type: ignore[arg-type]
    levels = np.arange(256, dtype=np.uint8).repeat(48).reshape(1, 1, 64, 192).repeat(3, 1)
    values = torch.from_numpy(config.normalize(levels)).to(getattr(torch, dtype))
    rules(config, None).tensor(values)
    if dtype != "bfloat16":
        rules(config, None).array(values.numpy())
    low, high = config.value_range()
    for wrong in (low - 0.02 * (high - low), high + 0.02 * (high - low)):
        values[0, 1, 2, 3] = wrong
        if dtype in ("float32", "float64"):
            with pytest.raises(ImageError):
                rules(config, None).tensor(values)


def test_the_range_is_that_of_the_checkpoint() -> None:
    rules(CLIP).array(CLIP.normalize(LEVELS))
    with pytest.raises(ImageError, match=r"normalized ones from -1\.792 to 2\.146 .*mean \(0\.4815"):
        rules(CLIP).array(CLIP.normalize(LEVELS) * 2)
    with pytest.raises(ImageError, match=r"look like levels .*normalize them to -1\.792\.\.2\.146"):
        rules(CLIP).array(FLOATS * 255)


@pytest.mark.parametrize("options", [{}, {"input": "uint8", "batch": 2}], ids=str)
def test_every_backend_agrees(
    exported: Callable[..., Artifact], tiny: Checkpoint, distance: Callable[[Any, Any], float], options: dict[str, Any]
) -> None:
    artifact = exported(**options)
    names = ["onnxruntime-cpu", "eager"]
    if "input" not in options:
        pytest.importorskip("openvino")
        names.append("openvino")
    encoders = [Encoder(artifact, name, checkpoint=tiny if name == "eager" else None) for name in names]
    taken = [
        LEVELS.copy(),
        FLOATS.copy(),
        FLOATS.astype(np.float64),
        FLOATS.astype(np.float16),
        LEVELS[:, :, ::-1].copy()[:, :, ::-1],
    ]
    wanted = encoders[0].run(LEVELS)
    for encoder in encoders:
        for pixels in taken:
            pixels.setflags(write=False)
            bound = 2e-3 if pixels.dtype == np.float16 else 1e-5
            assert distance(encoder.run(pixels), wanted) < bound
            assert distance(encoder.run_tensor(torch.from_numpy(pixels.copy())), wanted) < bound
        assert distance(encoder.run_tensor(torch.from_numpy(FLOATS).bfloat16()), wanted) < 2e-2
        assert encoder.run(LEVELS[:0]).shape == encoder.run_tensor(torch.from_numpy(LEVELS[:0])).shape == (0, 4, 256)
    for pixels, _ in REFUSED.values():
        for how in (lambda e, x: e.run(x), lambda e, x: e.run_tensor(torch.from_numpy(np.ascontiguousarray(x)))):
            said = set()
            for encoder in encoders:
                with pytest.raises(FvexportError) as error:
                    how(encoder, pixels)
                said.add((type(error.value), str(error.value)))
            assert len(said) == 1


@pytest.mark.gpu
def test_floats_on_a_gpu_are_checked_there() -> None:
    assert rules().tensor(torch.from_numpy(FLOATS).cuda()).is_cuda
    with pytest.raises(ImageError, match="look like levels"):
        rules().tensor(torch.from_numpy(FLOATS).cuda() * 255)
