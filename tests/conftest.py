"""Fixtures shared by all tests, and what happens to tests that need a GPU where there is none."""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes at once: each keeps to one core, and so do those it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` on a machine without one. Imports torch only where there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache, nor does a process that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photographs() -> dict[str, Path]:
    """Real photographs by name, from scikit-image's wheel."""
    from fvexport.encoder.image import sample_images

    return sample_images()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Tiny checkpoints in three public forms, with outputs of the reference implementations."""
    return Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Models as small as the tests' are slower on several threads, much slower on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden_taps() -> dict[str, str]:
    """Apple's flat `network` -> the part of ours whose output it is, as the llava golden's taps are named."""
    return {
        "stem": "stem.2", "conv_exp": "final_conv",
        "network.0": "stages.0.blocks.0", "network.1": "stages.1.downsample", "network.2": "stages.1.blocks.0",
        "network.3": "stages.2.downsample", "network.4": "stages.2.blocks.1", "network.5": "stages.3.downsample",
        "network.6": "stages.3.pos_emb", "network.7": "stages.3.blocks.0", "network.8": "stages.4.downsample",
        "network.9": "stages.4.pos_emb", "network.10": "stages.4.blocks.0",
    }  # fmt: skip


@pytest.fixture(scope="session")
def tensorrt_folders() -> dict[str, Path]:
    """Folders for PYTHONPATH: `tensorrt`, `tensorrt_rtx` and, with names alone, versions of TensorRT 10.

    See tensorrt_cpu.py. Tests that ask for it are skipped where it cannot be had, or was not made.
    """
    made = runpy.run_path(str(Path(__file__).parent / "tensorrt_cpu.py"))
    if (reason := made["why_not"]()) is not None:
        pytest.skip(reason)
    return {folder.name: folder for folder in made["FOLDER"].iterdir()}


def _imported(name: str, folders: dict[str, Path]) -> Any:
    """The installed one where there is one, and the GPU it needs, else the tests' own; for the rest of the process."""
    import torch

    if not torch.cuda.is_available() or importlib.util.find_spec(name) is None:
        sys.path.insert(0, str(folders[name]))
        importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def tensorrt(tensorrt_folders: dict[str, Path]) -> Any:
    """The module `tensorrt`, which builds with no GPU (and leaves plans there that no full TensorRT would load)."""
    return _imported("tensorrt", tensorrt_folders)


@pytest.fixture(scope="session")
def tensorrt_rtx(tensorrt_folders: dict[str, Path]) -> Any:
    """The module `tensorrt_rtx`, which builds with no GPU."""
    return _imported("tensorrt_rtx", tensorrt_folders)


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where none is installed, whatever other tests imported."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
