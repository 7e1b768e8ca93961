"""One Ray cluster of this process for all tests of the folder, and images in the forms that Ray's readers take."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.data")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """The module `ray`, connected to a cluster of two CPUs that this process started."""
    import logging

    from fvexport.cluster.connection import import_ray

    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    ray = import_ray()
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        # Else Ray ends idle processes after a second, and starts one for each file that it writes.
        _system_config={"num_workers_soft_limit": 16},
    )
    ray.data.DataContext.get_current()  # sets the level that the next line replaces
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # pytest would show thousands of lines
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def artifact(exported: Any) -> Path:
    """The tiny encoder at 64 x 64."""
    return exported(height=64, width=64).path


@pytest.fixture(scope="session")
def encoder(artifact: Path) -> Any:
    """The same, in this process."""
    from fvexport.export.runtime import Encoder

    return Encoder(artifact)


@pytest.fixture(scope="session")
def images(photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six small photographs as JPEG files."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for number, (_, path) in zip(range(6), sorted(photographs.items()), strict=False):
        with Image.open(path) as image:
            image.convert("RGB").resize((60 + 10 * number, 80)).save(folder / f"{number:03d}.jpg")
    return folder


@pytest.fixture(scope="session")
def listed(cluster: Any) -> Any:
    """`listed(items)`: a source of these; its class goes to workers by value, since they cannot import tests."""
    spec = importlib.util.spec_from_file_location("listed_source", Path(__file__).parent / "listed_source.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cluster.cloudpickle.register_pickle_by_value(module)
    return module.Listed
