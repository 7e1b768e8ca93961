"""The photographs that scikit-image's wheel carries: parity and calibration use them where none are given."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ...core.errors import UnavailableError

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
    *("motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
"""The photographs among the pictures in scikit-image's wheel; chelsea is a cat."""

HELD_OUT = ("astronaut", "coffee")
"""The photographs that parity looks at where none are named; calibration leaves them out."""


def sample_images() -> dict[str, Path]:
    """Photographs that scikit-image's wheel carries, by name (`astronaut`, `chelsea`, `coffee`, ...): no download.

    Raises UnavailableError where scikit-image is not installed, or was packaged without them.
    """
    # Found, not imported: importing scikit-image takes longer than reading all its photographs.
    spec = importlib.util.find_spec("skimage")
    folders = spec.submodule_search_locations if spec else None
    found = {
        Path(file).stem: Path(folder, "data", file)
        for folder in folders or ()
        for file in PHOTOGRAPHS
        if Path(folder, "data", file).is_file()
    }
    if not found:
        raise UnavailableError("the sample photographs come with scikit-image: pip install scikit-image")
    return found
