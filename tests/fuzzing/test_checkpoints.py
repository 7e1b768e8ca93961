"""Checkpoints: the settings of each form, the header of the weights, the index of shards, and PyTorch's own files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import byte_files, hostile_value, json_files, safetensors_files
from PIL import Image
from safetensors.torch import load_file, save

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.preprocessing import read_preprocessing
from fvexport.encoder.checkpoint.settings import read_settings
from fvexport.encoder.checkpoint.source import locate
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.preprocess_config import PreprocessConfig
from fvexport.encoder.processor_dict import to_dict

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[1] / "data/golden"
FORMS = ("llava_tiny", "transformers_tiny", "timm_tiny")
WEIGHTS = {form: (GOLDEN / form / "model.safetensors").read_bytes() for form in FORMS}
HEADER = {form: 8 + int.from_bytes(content[:8], "little") for form, content in WEIGHTS.items()}
"""By form: where the header ends and the values begin."""

PROCESSOR = {
    "crop_size": {"height": 256, "width": 256}, "size": {"shortest_edge": 256}, "do_center_crop": True,
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
    "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "rescale_factor": 1 / 255,
    "image_processor_type": "CLIPImageProcessor",
}  # fmt: skip
TIMM = {
    "input_size": [3, 256, 256], "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "crop_pct": 0.95,
    "crop_mode": "center", "interpolation": "bicubic",
}  # fmt: skip
OPEN_CLIP = {
    "model_cfg": {"embed_dim": 768, "vision_cfg": {"image_size": 256}},
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "longest",
        "fill_color": 0, "mode": "RGB",
    },
}  # fmt: skip
SETTINGS: dict[str, tuple[str, str, Any]] = {
    "llava": ("llava_tiny", "config.json", json.loads((GOLDEN / "llava_tiny/config.json").read_text())),
    "transformers": (
        "transformers_tiny", "config.json", json.loads((GOLDEN / "transformers_tiny/config.json").read_text()),
    ),
    "timm": ("timm_tiny", "config.json", {"architecture": "fastvit_mci3", "pretrained_cfg": TIMM}),
    "open_clip": ("timm_tiny", "open_clip_config.json", OPEN_CLIP),
    "preprocessor": ("llava_tiny", "preprocessor_config.json", PROCESSOR),
    "own": ("llava_tiny", "preprocessor_config.json", to_dict(PreprocessConfig("squash", crop_pct=0.5), 256, 256)),
    "processor": ("transformers_tiny", "processor_config.json", {"image_processor": PROCESSOR}),
}  # fmt: skip
"""By kind of settings: the golden weights that they are put beside, the file's name, and its content."""


def put(folder: Path, files: dict[str, bytes], form: str | None = None) -> None:
    """Makes `folder` hold these files alone, and a link to the golden weights of a form."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if form is not None:
        (folder / "model.safetensors").symlink_to(GOLDEN / form / "model.safetensors")


@pytest.mark.parametrize("kind", SETTINGS)
def test_sound_settings_are_read(kind: str, tmp_path: Path) -> None:
    form, name, content = SETTINGS[kind]
    put(tmp_path, {name: json.dumps(content).encode()}, form)
    found = load_checkpoint(tmp_path).info
    assert str(found.preprocessing_source).startswith(name) == (kind not in ("llava", "transformers"))
    assert found.resolution == (None if kind == "transformers" else 256)


@st.composite
def settings_files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    form, name, content = SETTINGS[draw(st.sampled_from(sorted(SETTINGS)))]
    return form, name, draw(json_files(content))


@fuzz(examples=150, drawn=settings_files())
def test_settings(drawn: tuple[str, str, bytes], folder: Path) -> None:
    form, name, content = drawn
    put(folder, {name: content}, form)
    with only_our_errors():
        configs = locate(folder).configs
        found = read_preprocessing(configs, form.removesuffix("_tiny"), read_settings(configs).pads)
        Preprocessor(64, 128, found.config).pixels(Image.new("RGB", (40, 30)))


@fuzz(examples=12, drawn=settings_files(), share=0.1)
def test_checkpoints_with_settings(drawn: tuple[str, str, bytes], folder: Path) -> None:
    form, name, content = drawn
    put(folder, {name: content}, form)
    with only_our_errors():
        load_checkpoint(folder)


@st.composite
def headers(draw: st.DrawFn) -> tuple[str, bytes]:
    form = draw(st.sampled_from(FORMS))
    return form, draw(safetensors_files(WEIGHTS[form][: HEADER[form]]))


@fuzz(examples=25, drawn=headers())
def test_weights(drawn: tuple[str, bytes], folder: Path) -> None:
    form, header = drawn
    put(folder, {"model.safetensors": header + WEIGHTS[form][HEADER[form] :]})
    with only_our_errors():
        load_checkpoint(folder)


STATE_DICT = load_file(GOLDEN / "timm_tiny/model.safetensors")
SHARDS = {
    f"{part}.safetensors": save({name: STATE_DICT[name] for name in sorted(STATE_DICT)[part::2]}) for part in (0, 1)
}
INDEX = {
    "metadata": {"total_size": 1},
    "weight_map": {name: f"{number % 2}.safetensors" for number, name in enumerate(sorted(STATE_DICT))},
}


def test_a_sound_index_is_read(tmp_path: Path) -> None:
    put(tmp_path, {**SHARDS, "model.safetensors.index.json": json.dumps(INDEX).encode()})
    assert load_checkpoint(tmp_path).info.sha256 == load_checkpoint(GOLDEN / "timm_tiny").info.sha256


@fuzz(examples=20, content=json_files(INDEX))
def test_index(content: bytes, folder: Path) -> None:
    put(folder, {**SHARDS, "model.safetensors.index.json": content})
    with only_our_errors():
        load_checkpoint(folder)


KEYS = ("state_dict", "model", "module", "net", "state_dict_ema", "ema", "stages.4.blocks.0.mlp.fc1.weight", "a", 0)


class Within:
    """Stands for the dictionary that it is in, or one further out."""


def tensors() -> st.SearchStrategy[Any]:
    """Tensors of every layout that a pickle can hold."""
    return st.sampled_from([
        torch.zeros(256, 128, 1, 1), torch.zeros(()), torch.zeros(0, 2**40), torch.zeros(1).expand(2**40),
        torch.zeros(1, dtype=torch.int8), torch.zeros(2, dtype=torch.complex64), torch.eye(3).to_sparse(),
        torch.zeros(2**40, device="meta"), torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), torch.nn.Parameter(torch.zeros(3, 3)),
    ])  # fmt: skip


contents = st.recursive(
    st.one_of(tensors(), hostile_value, st.builds(Within), st.builds(lambda: STATE_DICT)),
    lambda inner: st.one_of(st.dictionaries(st.sampled_from(KEYS), inner, max_size=3), st.lists(inner, max_size=2)),
    max_leaves=6,
)


def with_cycles(value: Any, outer: list[Any]) -> Any:
    """`value` with each `Within` replaced by a dictionary around it."""
    if isinstance(value, Within):
        return outer[len(outer) // 2] if outer else {}
    if isinstance(value, list):
        return [with_cycles(inner, outer) for inner in value]
    if not isinstance(value, dict):
        return value
    made: dict[Any, Any] = {}
    made |= {key: with_cycles(inner, [*outer, made]) for key, inner in value.items()}
    return made


def saved(content: Any, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@fuzz(examples=40, content=contents, zipped=st.booleans())
def test_pickled_structures(content: Any, zipped: bool, folder: Path) -> None:
    try:
        file = saved(with_cycles(content, []), zipped=zipped)
    except (OverflowError, UnicodeError, NotImplementedError, RuntimeError):  # not by this format
        return
    (folder / "model.pt").write_bytes(file)
    with only_our_errors():
        load_checkpoint(folder / "model.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_sound_pickles_are_read(zipped: bool, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(saved({"state_dict": STATE_DICT, "epoch": 3}, zipped=zipped))
    assert load_checkpoint(tmp_path / "model.pt").info.form == "timm"


SMALL = {"state_dict": {f"stages.4.blocks.0.mlp.fc{n}.weight": torch.zeros(2, 2, 1, 1) for n in (1, 2)}, "epoch": 3}


@fuzz(examples=60, content=st.sampled_from([saved(SMALL), saved(SMALL, zipped=False)]).flatmap(byte_files))
def test_pickles(content: bytes, folder: Path) -> None:
    (folder / "model.pt").write_bytes(content)
    with only_our_errors():
        load_checkpoint(folder / "model.pt")
