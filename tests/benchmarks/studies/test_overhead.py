"""The overhead over bare runtimes, and answers shared by threads: every row is measured, and faults are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from click.testing import CliRunner

from fvexport.benchmarks.studies import concurrency, overhead
from fvexport.benchmarks.studies.overhead import bare_loop, export_seeded
from fvexport.export.artifact import Artifact
from fvexport.export.runtime import Encoder
from fvexport.kernels.timing import HostClock


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_seeded("tiny", 64, tmp_path_factory.mktemp("overhead") / "made")


@pytest.fixture(autouse=True)
def _few(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "SAMPLE_MS", 1.0)


def test_a_row_for_each_backend(artifact: Artifact) -> None:
    command = ["--artifact", str(artifact.path), "--rounds", "5", "--threads", "1", "--limit", "1000"]
    done = CliRunner().invoke(overhead.main, command)
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.output.splitlines()[1:]}
    assert list(rows) == list(overhead.MEASURED)
    for name, line in rows.items():
        if name != "openvino" or "pip install" not in line:
            assert float(line.split()[1]) > 0 and ".." in line


def test_the_bare_loop_computes_the_same(artifact: Artifact) -> None:
    x = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    for name in ("onnxruntime-cpu", "eager"):
        encoder = Encoder(artifact, name, threads=1)
        np.testing.assert_allclose(bare_loop(encoder, x)(), encoder.run(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("cost", "code"), [(1.05, 1), (1.02, 0)])
def test_what_is_slower_is_found(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, cost: float, code: int
) -> None:  # fmt: skip
    """By a clock that counts, since a real one measures what else the machine does."""
    ours: list[bool] = []
    run = Encoder.run

    def seen(self: Encoder, pixels: np.ndarray) -> np.ndarray:
        ours.append(True)
        return run(self, pixels)

    def measure(_clock: object, call: Callable[[], object], runs: int = 1) -> float:
        ours.clear()
        call()
        return runs * (cost if ours else 1.0)

    monkeypatch.setattr(Encoder, "run", seen)
    monkeypatch.setattr(HostClock, "measure", measure)
    monkeypatch.setattr(overhead, "MEASURED", ("onnxruntime-cpu",))
    done = CliRunner().invoke(overhead.main, ["--artifact", str(artifact.path), "--rounds", "5", "--threads", "1"])
    assert done.exit_code == code and f"{cost:.3f}x  {cost:.3f}..{cost:.3f}" in done.output
    assert ("beyond 1.03x: onnxruntime-cpu" in done.output) == bool(code)


def test_threads_that_share(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "--artifact",
        str(artifact.path),
        "--threads",
        "1,3",
        "--calls",
        "30",
        "--backends",
        "onnxruntime-cpu,eager",
    ]
    done = CliRunner().invoke(concurrency.main, command)
    assert done.exit_code == 0, done.output
    rows = [line.split()[:5] for line in done.output.splitlines()[1:]]
    assert rows == [[name, n, "30", "0", "0"] for name in ("onnxruntime-cpu", "eager") for n in ("1", "3")]
    taken: Iterator[int] = iter(range(1000))
    run = Encoder.run

    def wrong(self: Encoder, pixels: np.ndarray) -> np.ndarray:
        index = next(taken)
        if index > 8 and index % 10 == 4:  # after the images alone
            raise RuntimeError("busy")
        return run(self, pixels[:, :, ::-1].copy() if index % 10 == 9 else pixels)

    monkeypatch.setattr(Encoder, "run", wrong)
    done = CliRunner().invoke(
        concurrency.main, [*command[:2], "--calls", "40", "--backends", "eager", "--threads", "1"]
    )
    assert done.exit_code == 1
    assert done.output.splitlines()[1].split()[:5] == ["eager", "1", "40", "4", "4"]
