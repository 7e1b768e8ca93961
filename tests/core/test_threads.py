"""How many threads PyTorch computes with: within a container's quota, as asked, and as before afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from fvexport.core import hardware
from fvexport.core.errors import ConfigError
from fvexport.core.threads import MAX_THREADS, check_threads, fewer_torch_threads, torch_threads


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hardware, "usable_cores", lambda: [0, 1, 2, 3])
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (0.5, 1), (1.5, 2), (4.0, 4), (9.0, 4)])
def test_default_is_within_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
    with torch_threads():
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4
    assert fewer_torch_threads() == (expected if expected < 4 else None)


def test_fewer_than_the_quota_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_quota", lambda: 2.0)
    torch.set_num_threads(1)
    with torch_threads():
        assert torch.get_num_threads() == 1


def test_nested_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_quota", lambda: 1.0)

    @torch_threads()
    def by_default() -> int:
        return torch.get_num_threads()

    assert by_default() == 1
    with torch_threads(3):
        assert by_default() == 3  # what was asked for stays, even beyond the quota
        with torch_threads(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 4
    assert by_default() == 1


def test_concurrent_uses() -> None:
    """Two uses that overlap, the first to begin the first to end: not the other's count is restored."""
    begun, ended = threading.Event(), threading.Event()

    def first() -> None:
        with torch_threads(3):
            begun.set()
            ended.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait(10)
    with torch_threads(2):
        ended.set()
        thread.join()
    assert torch.get_num_threads() == 4
    found: list[int] = []
    late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert found == [4]


@pytest.mark.parametrize("count", [0, -1, MAX_THREADS + 1, 10**100])
def test_numbers_that_make_no_sense(count: int) -> None:
    with pytest.raises(ConfigError, match=r"threads must be from 1 to 1024"):
        check_threads(count)
    check_threads(None)
    check_threads(MAX_THREADS)
