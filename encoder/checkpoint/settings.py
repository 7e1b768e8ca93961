"""What the JSON files beside the weights tell: preprocessing, native size, connector, depths.

Nothing here is needed to read the weights, and values of unexpected types tell nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import MAX_SIDE, MIXERS, FastViTHDConfig
from .architecture import MAX_BLOCKS

Configs = Mapping[str, Mapping[str, Any]]

CONFIG_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")
"""The files read, by those who publish the five forms."""


@dataclass(frozen=True)
class Settings:
    """Attributes:
    pads: whether LLaVA's `image_aspect_ratio` asks for padding, None where no file says so.
    resolution: native input side in pixels, None where no file says so.
    depths: blocks of each stage, None where no file says so.
    connector: LLaVA's `mm_projector_type`, None where no file says so.
    activation: of transformers' connector, `projector_hidden_act`; None where no file says so.
    """

    pads: bool | None = None
    resolution: int | None = None
    depths: tuple[int, ...] | None = None
    connector: str | None = None
    activation: str | None = None


def read_settings(configs: Configs) -> Settings:
    """Gathers the settings from parsed files (file name -> content)."""
    main = configs.get("config.json", {})
    kind, activation = main.get("mm_projector_type"), main.get("projector_hidden_act")
    return Settings(
        _pads(main), _resolution(configs), _depths(main), kind if isinstance(kind, str) else None,
        activation if isinstance(activation, str) else None,
    )  # fmt: skip


def _dig(data: Any, *path: str) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _pads(main: Mapping[str, Any]) -> bool | None:
    # LLaVA: `pad` and the tilings (`anyres…`) pad; any other value resizes and crops.
    value = main.get("image_aspect_ratio")
    if not isinstance(value, str):
        return None
    return value == "pad" or value.startswith("anyres")


def _resolution(configs: Configs) -> int | None:
    main = configs.get("config.json", {})
    tower = main.get("mm_vision_tower")
    if isinstance(tower, str) and (match := re.search(r"_([0-9]{1,6})$", tower)):  # mobileclip_l_1024
        found: list[Any] = [int(match[1])]
    else:
        found = []
    processor = configs.get("processor_config.json")
    # In the order in which transformers reads them.
    for holder in (_dig(processor, "image_processor"), configs.get("preprocessor_config.json"), processor):
        found += [_dig(holder, "crop_size"), _dig(holder, "size")]
    found += [
        _dig(main, "vision_config", "image_size"),
        _dig(main, "pretrained_cfg", "input_size"),
        _dig(configs.get("open_clip_config.json"), "model_cfg", "vision_cfg", "image_size"),
        _dig(configs.get("open_clip_config.json"), "model_cfg", "vision_cfg", "timm_model_kwargs", "img_size"),
    ]
    sides = (_side(value) for value in found)
    return next((side for side in sides if side), None)


def _side(value: Any) -> int | None:
    """One side of a square size, in any of the notations in use; None where it is none of ours."""
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[-1]
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value <= MAX_SIDE and value % FastViTHDConfig().stride == 0 else None


def _depths(main: Mapping[str, Any]) -> tuple[int, ...] | None:
    for value in (main.get("vision_layers"), _dig(main, "vision_config", "model_args", "layers")):
        if not isinstance(value, list) or len(value) != len(MIXERS):
            continue
        if all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MAX_BLOCKS for n in value):
            return tuple(value)
    return None
