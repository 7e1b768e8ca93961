"""The timing cache: keyed, kept, combined with what another build wrote, set aside where TensorRT refuses it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from fvexport.core.errors import ConfigError
from fvexport.core.progress import silent
from fvexport.export.engines.api import Api
from fvexport.export.engines.build import build_plan
from fvexport.export.engines.engine_options import EngineOptions, Profile
from fvexport.export.engines.engine_section import TimingCacheUse
from fvexport.export.engines.timing_cache import TimingCache, default_path

STATIC = Profile(batch=(1, 1, 1), height=(128, 128, 128), width=(128, 128, 128))


class Entries:
    """A cache whose content is lines, combined as TensorRT combines entries."""

    def __init__(self, stored: bytes) -> None:
        self.lines = set(stored.splitlines())

    def combine(self, other: Entries, ignore_mismatch: bool) -> bool:
        self.lines |= other.lines
        return True

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self.lines))


class Config:
    """As a builder's configuration, with the calls that a timing cache needs."""

    def __init__(self, learns: bytes = b"") -> None:
        self.learns = learns
        self.cache: Entries | None = None

    def create_timing_cache(self, stored: bytes) -> Entries | None:
        return None if stored.startswith(b"foreign") else Entries(stored)

    def set_timing_cache(self, cache: Entries, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Entries | None:
        if self.cache is not None and self.learns:
            self.cache.lines |= {self.learns}
        return self.cache


def use(path: Path, learns: bytes, *, between: Any = None, refused: bool = False) -> TimingCache:
    cache, config = TimingCache(path), Config(learns)
    cache.attach(config, lambda: refused)
    if between:
        between()
    cache.save(config)
    return cache


def test_the_second_build_reads_what_the_first_wrote(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.cache"
    assert use(path, b"a").loaded_bytes == 0
    second = use(path, b"b")
    assert second.use == TimingCacheUse(file=str(path), loaded_bytes=1)
    assert path.read_bytes() == b"a\nb"
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == ["t.cache"]


def test_what_another_build_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    use(path, b"a", between=lambda: use(path, b"b"))
    assert path.read_bytes() == b"a\nb"


def test_many_builds_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    threads = [threading.Thread(target=use, args=(path, b"%d" % i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(path.read_bytes().split()) == {b"%d" % i for i in range(8)}


@pytest.mark.parametrize("how", ["returned", "said"])
def test_one_that_tensorrt_refuses_is_set_aside(tmp_path: Path, how: str) -> None:
    path = tmp_path / "t.cache"
    path.write_bytes(b"foreign" if how == "returned" else b"damaged")
    cache = use(path, b"a", refused=how == "said")
    assert cache.loaded_bytes == 0 and path.read_bytes() == b"a"
    assert (tmp_path / "t.cache.refused").exists()
    assert "damaged, or of another TensorRT or GPU; it is now t.cache.refused" in cache.notices[0]


@pytest.mark.parametrize("trouble", ["a file above it", "a folder there"])
def test_one_that_cannot_be_used(tmp_path: Path, trouble: str) -> None:
    """Named by the user, that is told before the build; our own is done without."""
    path = tmp_path / "place" / "t.cache"
    if trouble == "a file above it":
        path.parent.write_text("")
    else:
        path.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"t\.cache cannot be used: .*; choose another --timing-cache"):
        use(path, b"a")
    cache, config = TimingCache(path, named=False), Config(b"a")
    cache.attach(config, lambda: False)
    assert config.cache is not None and not config.cache.lines
    cache.save(config)
    assert len(cache.notices) == 1 and "cannot be used" in cache.notices[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_costs_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.cache"
    use(path, b"a")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert use(path, b"b").notices == [f"the timing cache {path} was not written: No space left on device"]
    assert path.read_bytes() == b"a"
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".t.cache.lock")] == ["t.cache"]


def test_the_default_file_is_of_one_version_and_gpu(full: Api, rtx: Api) -> None:
    paths = {default_path(api, gpu) for api in (full, rtx) for gpu in ("NVIDIA L4", "NVIDIA H100 80GB HBM3", None)}
    assert len(paths) == 6
    name = default_path(full, "NVIDIA H100 80GB HBM3").name
    assert name == f"tensorrt-{full.version}-NVIDIA-H100-80GB-HBM3.cache"


def test_the_real_library(full: Api, onnx_artifact, tmp_path: Path) -> None:
    """A build writes one; without a GPU TensorRT reads none back, says so, and the build goes on."""
    path = tmp_path / "t.cache"
    model = onnx_artifact().model_path
    options = EngineOptions(timing_cache=str(path))
    first = build_plan(full, model, STATIC, options, TimingCache(path), silent)
    assert first.cache == TimingCacheUse(file=str(path), loaded_bytes=0) and path.stat().st_size > 50
    path.write_bytes(b"no timing cache")
    second = build_plan(full, model, STATIC, options, TimingCache(path), silent)
    assert second.plan and second.notices[0].startswith(f"the timing cache {path} is damaged")
    assert (tmp_path / "t.cache.refused").read_bytes() == b"no timing cache"
