"""Values from the text of options. All raise ConfigError, showing the form that was expected and the text."""

from __future__ import annotations

import re
from typing import cast

from ..core.errors import ConfigError
from ..export.engines.engine_options import Span
from ..export.server_options import INSTANCE_KINDS, InstanceKind

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_NUMBER = r"(\d{1,15}(?:\.\d{1,15})?)"
"""No longer than any that makes sense, because Python neither reads nor prints numbers of any length."""


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= 15


def parse_resolution(text: str) -> tuple[int, int]:
    """`1024` -> (1024, 1024); `512x384` -> (512, 384), height first."""
    sides = [side.strip() for side in text.lower().split("x")]
    if len(sides) <= 2 and all(map(_is_count, sides)):
        height, width = int(sides[0]), int(sides[-1])
        return height, width
    raise ConfigError(f"resolution must look like 1024 or 512x384 (height x width); found {text!r}")


def parse_resolutions(text: str) -> list[tuple[int, int]]:
    """`256,512x384` -> [(256, 256), (512, 384)]."""
    return [parse_resolution(part) for part in text.split(",")]


def parse_grid(text: str) -> tuple[int, int]:
    """`2x3` -> (2, 3): rows, columns."""
    if match := re.fullmatch(r"(\d{1,15})x(\d{1,15})", text):
        return int(match[1]), int(match[2])
    raise ConfigError(f"{text!r} is no grid of tiles; give rows x columns, such as 2x2")


def parse_batch(text: str) -> int | None:
    """`4` -> 4; `dynamic` -> None."""
    if text == "dynamic":
        return None
    if _is_count(text):
        return int(text)
    raise ConfigError(f"batch must be a number or 'dynamic'; found {text!r}")


def parse_batch_span(text: str) -> Span:
    """`4` -> (4, 4, 4); `1:4:8` -> (1, 4, 8)."""
    parts = text.split(":")
    if len(parts) in (1, 3) and all(map(_is_count, parts)):
        low, best, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
        return low, best, high
    raise ConfigError(f"batch must be a number or MIN:OPT:MAX; found {text!r}")


def parse_resolution_span(text: str) -> tuple[Span, Span]:
    """`256:1024:2048` or `256x256:512x384:1024x768` -> heights and widths."""
    parts = text.split(":")
    if len(parts) != 3:
        raise ConfigError(f"a range of resolutions must look like 256:1024:2048 (MIN:OPT:MAX); found {text!r}")
    heights, widths = zip(*(parse_resolution(part) for part in parts), strict=True)
    return heights, widths


def parse_bytes(text: str) -> int:
    """`4GiB`, `512MB`, `2G` or a number of bytes -> bytes."""
    match = re.fullmatch(_NUMBER + r"\s*([kmg]i?)?b?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"a size must look like 4GiB or 512MB; found {text!r}")
    return int(float(match[1]) * _BYTES[match[2] or ""])


def parse_seconds(text: str) -> float:
    """`90s`, `30m` or `1.5h` -> seconds."""
    found = re.fullmatch(_NUMBER + r"\s*([smh])", text.strip().lower())
    if found is None:
        raise ConfigError(f"a time must look like 90s, 30m or 1.5h; found {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def parse_percent(text: str) -> float:
    """`5%` -> 0.05. The sign is required, because 0.05 could mean either."""
    match = re.fullmatch(_NUMBER + r"\s*%", text.strip())
    if match is None or not 0 < float(match[1]) < 100:
        raise ConfigError(f"{text!r} is no percentage above 0 and below 100, such as 5%.")
    return float(match[1]) / 100


def parse_pixels(text: str) -> int | None:
    """`200M`, `1.5G` or `250000` -> a number of pixels; `none` -> None, for no limit."""
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"(\d{1,15}|\d{0,15}\.\d{1,15})\s*([kmg]?)", text.strip().lower())
    pixels = round(float(match[1]) * _BYTES[match[2]]) if match else 0
    if pixels < 1:
        raise ConfigError(f"{text!r} is no number of pixels; give one such as 200M, or none for no limit")
    return pixels


def parse_instances(text: str) -> tuple[InstanceKind | None, int]:
    """`2` -> (None, 2); `cpu:2` -> ("cpu", 2)."""
    match = re.fullmatch(rf"(?:({'|'.join(INSTANCE_KINDS)}):)?([0-9]{{1,6}})", text.strip().lower())
    if match is None:
        raise ConfigError(f"instances must look like 2 or cpu:2; found {text!r}")
    return cast("InstanceKind | None", match[1]), int(match[2])
