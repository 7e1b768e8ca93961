"""How many workers a cluster gets, and what is refused before any work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fvexport.cluster.workers import Node, RayOptions, Workers, plan_workers
from fvexport.core.errors import ConfigError, UnavailableError


@pytest.mark.parametrize(
    ("nodes", "options", "wanted"),
    [
        ([Node(3, 0)], {}, Workers(1, 2, 0)),  # a local cluster has one CPU more than the machine
        ([Node(3, 0)], {"concurrency": 2}, Workers(2, 1, 0)),
        ([Node(8, 0), Node(8, 0)], {}, Workers(2, 7, 0)),
        ([Node(8, 0), Node(8, 0), Node(0, 0)], {"concurrency": 4}, Workers(4, 3, 0)),
        ([Node(64, 8), Node(64, 8)], {}, Workers(16, 7, 1)),
        ([Node(64, 8), Node(4, 0)], {}, Workers(8, 8, 1)),  # the other node reads and writes
        ([Node(64, 8)], {"gpus_per_worker": 0.25}, Workers(32, 1, 0.25)),
        ([Node(64, 8)], {"gpus_per_worker": 2}, Workers(4, 15, 2)),
        ([Node(64, 8)], {"gpus_per_worker": 0}, Workers(1, 63, 0)),
        ([Node(64, 8)], {"concurrency": 3, "cpus_per_worker": 5}, Workers(3, 5, 1)),
    ],
)
def test_workers_fit(nodes: list[Node], options: dict[str, Any], wanted: Workers) -> None:
    assert plan_workers(nodes, RayOptions(**options)) == wanted


@pytest.mark.parametrize(
    ("nodes", "options", "error"),
    [
        ([Node(4, 0)], {"gpus_per_worker": 1}, "no node has 1 GPU for a worker .* 0 GPUs on 1 node.*--gpus-per-worker"),
        ([Node(8, 1), Node(8, 1)], {"gpus_per_worker": 2}, "no node has 2 GPU"),
        ([Node(8, 2)], {"concurrency": 3}, "3 workers of 1 GPU do not fit .* lower --concurrency to 2"),
        ([Node(1, 0)], {}, "1 worker of 1 CPU do not fit, with 1 CPU left"),
        ([Node(0, 0)], {}, "no node has a CPU"),
        ([], {}, "no node has a CPU"),
        ([Node(4, 0), Node(4, 0)], {"cpus_per_worker": 6, "concurrency": 1}, "1 worker of 6 CPUs do not fit"),
    ],
)
def test_workers_that_do_not_fit(nodes: list[Node], options: dict[str, Any], error: str) -> None:
    with pytest.raises(UnavailableError, match=error):
        plan_workers(nodes, RayOptions(**options))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"concurrency": 0}, "--concurrency must be at least 1; found 0"),
        ({"gpus_per_worker": 1.5}, "--gpus-per-worker must be 0 to 1, or a whole number"),
        ({"gpus_per_worker": float("nan")}, "--gpus-per-worker"),
        ({"address": "ray://head:10001"}, "Ray Client"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        RayOptions(**options)


def test_ray_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    from fvexport.cluster import connection

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(
            UnavailableError, match=r'needs ray, which is not installed; `pip install "fvexport\[ray\]"`'
        ):
            connection.import_ray()
    writer = pytest.importorskip("ray.data.checkpoint.checkpoint_writer")
    monkeypatch.delattr(writer, "PENDING_CHECKPOINT_SUFFIX")  # as in Ray 2.54
    monkeypatch.setattr(connection, "version_of", lambda name: "2.54.0")
    with pytest.raises(UnavailableError, match=r"Ray 2\.54\.0 cannot resume"):
        connection.import_ray()


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:1", r"no Ray cluster at 127\.0\.0\.1:1 \(Connection refused\); start one with `ray start --head`"),
        ("head", r"no Ray cluster at head \(it is no HOST:PORT\)"),
        ("auto", "no Ray cluster runs on this machine"),
    ],
)
def test_no_cluster_at_the_address(address: str, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fvexport.cluster.connection import connected

    pytest.importorskip("ray.data")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UnavailableError, match=error), connected(address):
        pass
