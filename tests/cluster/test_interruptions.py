"""Runs whose workers, nodes and drivers are killed: every id is there once, with the features of `Encoder`.

Nodes are processes of this machine (`ray.cluster_utils.Cluster`); a driver is a process of its own, as a command is.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray.data")
pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")]


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of one node, to which tests add others; no process is connected to it."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=options)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """Six images and a file that is none."""
    found = tmp_path / "images"
    found.mkdir()
    for file in images.iterdir():
        (found / file.name).write_bytes(file.read_bytes())
    (found / "text.jpg").write_text("no image")
    return found


def _start(address: str, artifact: Path, folder: Path, count: int, out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, str(Path(__file__).parent / "driver.py"), address, artifact, folder, count, out]
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _workers() -> list[int]:
    """Processes of Ray that encode."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _files(out: Path) -> int:
    """Checkpoints that are committed."""
    found = out.parent.glob(f".{out.name}.encoding/ray-*/checkpoint/*")
    return sum(not path.name.endswith(".pending.parquet") for path in found)


def _wait(condition: Callable[[], Any], driver: subprocess.Popen[str]) -> Any:
    for _ in range(2000):
        if found := condition():
            return found
        assert driver.poll() is None, f"the run ended too early: {driver.communicate()}"
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def _check(out: Path, folder: Path, count: int, encoder: Any) -> None:
    import pyarrow.parquet as pq

    files = sorted(folder.iterdir())
    expected = [None if file.name == "text.jpg" else encoder(file)[0] for file in files]
    seen: set[str] = set()
    for shard in out.iterdir():
        table = pq.read_table(shard)
        features = table["features"].combine_chunks()
        for row, (name, error) in enumerate(zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True)):
            assert name not in seen
            seen.add(name)
            wanted = expected[int(name) % len(files)]
            assert (error is None) == (wanted is not None)
            if wanted is not None:
                np.testing.assert_array_equal(features[row].to_numpy(), wanted)
    assert len(seen) == count


def test_worker_node_and_driver_are_lost(
    nodes: Any, folder: Path, artifact: Path, encoder: Any, tmp_path: Path
) -> None:
    count, out = 2000, tmp_path / "features"
    other = nodes.add_node(num_cpus=2, object_store_memory=200 << 20)
    driver = _start(nodes.address, artifact, folder, count, out)
    _wait(lambda: _files(out) >= 2, driver)
    os.kill(_wait(_workers, driver)[0], signal.SIGKILL)
    done = _files(out)
    _wait(lambda: _files(out) >= done + 2, driver)
    nodes.remove_node(other, allow_graceful=False)
    done = _files(out)
    _wait(lambda: _files(out) >= done + 2, driver)
    driver.kill()
    driver.communicate()
    assert not out.exists()

    again = _start(nodes.address, artifact, folder, count, out)
    printed, errors = again.communicate(timeout=400)
    failed = len(range(6, count, 7))
    assert (again.returncode, printed) == (0, f"{count - failed} {failed}\n"), errors
    _check(out, folder, count, encoder)
    assert {path.name for path in tmp_path.iterdir()} == {"features", "images"}


def test_driver_is_killed_at_random_moments(
    nodes: Any, folder: Path, artifact: Path, encoder: Any, tmp_path: Path
) -> None:
    count, out, choice = 3000, tmp_path / "features", random.Random(17)
    for _ in range(20):
        driver = _start(nodes.address, artifact, folder, count, out)
        files = _files(out)
        limit = time.monotonic() + choice.uniform(5, 60)
        # Half of the moments are after the first new file, which need not be in the seconds above.
        late = choice.random() < 0.5
        while time.monotonic() < limit and driver.poll() is None:
            if late and _files(out) > files:
                time.sleep(choice.uniform(0, 1))
                break
            time.sleep(0.05)
        driver.send_signal(choice.choice([signal.SIGKILL, signal.SIGTERM]))
        driver.communicate(timeout=60)
        if out.exists():
            break
    if not out.exists():
        printed, errors = _start(nodes.address, artifact, folder, count, out).communicate(timeout=400)
        assert printed, errors
    _check(out, folder, count, encoder)
