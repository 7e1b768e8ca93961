"""The tiny encoder and what was seen of it, made once for all tests of what follows a calibration."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fvexport.calibration.observe import observe
from fvexport.calibration.photos import CalibrationData, calibration_data
from fvexport.calibration.ranges_file import Stats
from fvexport.encoder.checkpoint import Checkpoint, load_checkpoint
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.encoder.preprocess import Preprocessor
from fvexport.encoder.reparameterize import reparameterize

Observe = Callable[[FastViTHD], Stats]
SIDE = 128


@pytest.fixture(scope="session", autouse=True)
def _translations(torchlib_once: None) -> None:
    """For every test of this folder."""


@pytest.fixture(scope="session")
def seeded_tiny() -> Checkpoint:
    """In train form."""
    return load_checkpoint(variant="tiny")


@pytest.fixture(scope="session")
def fused_tiny(seeded_tiny: Checkpoint) -> FastViTHD:
    """In float32; not to be changed."""
    return reparameterize(seeded_tiny.encoder)


@pytest.fixture(scope="session")
def observe_tiny(seeded_tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """`observe_tiny(model)`: statistics of any fused model on six photographs."""
    data, frame = calibration_data(None, 6), Preprocessor(SIDE, SIDE)

    def run(model: FastViTHD) -> Stats:
        cache: Path = tmp_path_factory.mktemp("observed")
        return observe(model, seeded_tiny.info, data, frame, cache=cache)

    return run


@pytest.fixture(scope="session")
def stats_tiny(observe_tiny: Observe, fused_tiny: FastViTHD) -> Stats:
    """Of the tiny encoder; not to be changed."""
    return observe_tiny(fused_tiny)


@pytest.fixture(scope="session")
def held_out(photographs: dict[str, Path]) -> Tensor:
    """Two photographs that were not calibrated on, (2, 3, H, W)."""
    frame = Preprocessor(SIDE, SIDE)
    return torch.cat([torch.from_numpy(frame(photographs[name])) for name in ("astronaut", "coffee")])


@pytest.fixture(scope="session")
def data(photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> CalibrationData:
    """Four whole photographs."""
    listed = tmp_path_factory.mktemp("calibration") / "list.txt"
    listed.write_text("\n".join(str(photographs[name]) for name in ("camera", "chelsea", "coins", "rocket")))
    return calibration_data(listed, 4)


@pytest.fixture
def run(fused_tiny: FastViTHD, seeded_tiny: Checkpoint, data: CalibrationData, tmp_path: Path) -> Callable[..., Stats]:
    """`observe` of `data`, with its cache in a folder of the test's own; takes other arguments by name."""

    def call(**changed: Any) -> Stats:
        given: dict[str, Any] = {
            "model": fused_tiny, "info": seeded_tiny.info, "data": data, "preprocessor": Preprocessor(SIDE, SIDE),
            "cache": tmp_path / "cache",
        }  # fmt: skip
        return observe(**(given | changed))

    return call


@pytest.fixture(scope="session")
def whole(
    fused_tiny: FastViTHD, seeded_tiny: Checkpoint, data: CalibrationData, tmp_path_factory: pytest.TempPathFactory
) -> Stats:
    """What `run` gives where nothing disturbs it; not to be changed."""
    return observe(fused_tiny, seeded_tiny.info, data, Preprocessor(SIDE, SIDE), cache=tmp_path_factory.mktemp("whole"))


@pytest.fixture
def same(tmp_path: Path) -> Callable[[Stats, Stats], bool]:
    """Whether two are equal to the last bit, names apart."""

    def call(*both: Stats) -> bool:
        files = [tmp_path / f"compared.{number}" for number in range(2)]
        for stats, file in zip(both, files, strict=True):
            replace(stats, source="", checkpoint_source="").save(file)
        return files[0].read_bytes() == files[1].read_bytes()

    return call


@pytest.fixture
def full_disk() -> AbstractContextManager[None]:
    """Within it no file may grow past 4096 bytes, as on a disk that is full."""

    @contextmanager
    def limited() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited()
