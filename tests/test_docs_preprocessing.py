"""The lines of docs/artifact.md that prepare an image without fvexport make what `Preprocessor` makes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fvexport.encoder.checkpoint.preprocessing import PUBLISHED
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import PreprocessConfig

PAGE = (Path(__file__).parents[1] / "docs/artifact.md").read_text(encoding="utf-8")
CONFIGS = {
    **PUBLISHED,
    "grey bars": PreprocessConfig("pad", "bilinear", mean=(0.5,) * 3, std=(0.25,) * 3, fill=(127,) * 3),
    "crop of transformers": PreprocessConfig("shortest", "lanczos", 0.875, (0.5,) * 3, (0.25,) * 3),
}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`prepared(preprocessor, image)`: levels and pixel values, by the lines of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fastvithd-1024").mkdir()
    pad, crop, both = re.findall(r"```python\n(.*?)```", PAGE.partition("## Preprocess without")[2], re.S)
    opening, found, padding = pad.partition("side = ")
    assert found

    def run(preprocessor: Preprocessor, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        manifest = {"preprocessing": preprocessor.to_dict()}
        (tmp_path / "fastvithd-1024" / "manifest.json").write_text(json.dumps(manifest))
        exif = image.getexif()
        exif[0x0112] = 6  # stored on its side
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.jpg", exif=exif, quality=95)
        middle = found + padding if preprocessor.config.resize == "pad" else crop
        names: dict[str, Any] = {}
        exec(opening + middle + both, names)
        return names["levels"].transpose(2, 0, 1), names["pixel_values"]

    return run


@pytest.mark.parametrize("size", [(37, 83), (131, 50), (64, 64), (67, 64), (64, 71), (5, 3)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_lines_of_the_page_make_the_same(prepared, config, size):
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    preprocessor = Preprocessor(64, 64, config)
    levels, pixel_values = prepared(preprocessor, Image.fromarray(noise))
    np.testing.assert_array_equal(levels, preprocessor.pixels("photo.jpg"))
    np.testing.assert_array_equal(pixel_values, preprocessor("photo.jpg"))


def test_the_class_that_a_manifest_names_by_way_of_a_file(tmp_path: Path) -> None:
    auto = pytest.importorskip("transformers").AutoImageProcessor
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 91, 3), np.uint8))
    for config in CONFIGS.values():
        preprocessor = Preprocessor(64, 64, config)
        content = preprocessor.to_dict()
        assert ("image_processor_type" in content) == (config.rounding == "down")
        if "image_processor_type" in content:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
            theirs = auto.from_pretrained(tmp_path, backend="pil")(image, return_tensors="np")["pixel_values"]
            np.testing.assert_allclose(theirs, preprocessor(image), rtol=0, atol=1e-5)
