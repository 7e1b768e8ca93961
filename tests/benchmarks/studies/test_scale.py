"""The scale model: the closed form against the simulation, the simulation against a real run, and the page."""

from __future__ import annotations

import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from PIL import Image

from fvexport.benchmarks.studies.scale import command
from fvexport.benchmarks.studies.scale.closed import best_interval, best_rows, estimate
from fvexport.benchmarks.studies.scale.events import given, simulate
from fvexport.benchmarks.studies.scale.rates import Job, Rates
from fvexport.core.errors import ConfigError
from fvexport.export.artifact import Artifact
from fvexport.export.features import pending

REPOSITORY = Path(__file__).parents[3]
RATES = Rates(encode_s=2e-3, decode_s=0.01, write_bytes=6144, shard_s=1.0, startup_s=30, restart_s=100, loss_s=2000)


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize(("gpus", "rows", "loss_s"), [(8, 2_000, 1000), (8, 20_000, 500)])
def test_the_closed_form_agrees_with_the_simulation(engine: str, gpus: int, rows: int, loss_s: float) -> None:
    job = Job(images=800_000 * gpus, gpus=gpus, engine=engine, rows=rows, rates=replace(RATES, loss_s=loss_s))
    found = [simulate(job, seed=seed) for seed in range(30)]
    expected = estimate(job)
    for name, tolerance in {"seconds": 0.05, "worker_s": 0.01, "again": 0.1, "losses": 0.1}.items():
        mean = statistics.mean(getattr(outcome, name) for outcome in found)
        assert getattr(expected, name) == pytest.approx(mean, rel=tolerance), name


def test_without_losses_both_are_exact() -> None:
    for engine in ("local", "ray"):
        job = Job(images=80_000, gpus=4, engine=engine, rows=1000, rates=replace(RATES, loss_s=0, bad=0))
        seconds = 30 + 20_000 * 2e-3 + 20 * 1.0
        for outcome in (estimate(job), simulate(job)):
            assert outcome.seconds == pytest.approx(seconds) and outcome.again == outcome.losses == 0
            assert outcome.worker_s == pytest.approx(4 * seconds)


def test_the_best_interval_is_the_least_time() -> None:
    for overhead, loss in ((1.0, 86400.0), (30.0, 3600.0), (600.0, 3600.0)):
        grid = np.geomspace(overhead, 10 * loss, 4000)
        times = np.expm1((grid + overhead) / loss) / grid
        assert best_interval(overhead, loss) == pytest.approx(grid[times.argmin()], rel=0.01)
    assert best_interval(1.0, 86400.0) == pytest.approx((2 * 86400) ** 0.5, rel=0.01)  # Young's


def test_the_best_rows_follow_the_best_interval() -> None:
    job = Job(images=10**9, gpus=10, engine="ray", rows=1, rates=replace(RATES, write_bytes=100, loss_s=86400))
    interval = best_interval(RATES.shard_s, 86400) / job.rates.image_s
    assert interval / 2 < best_rows(job) < 4 * interval  # a power of two, the largest of those as good
    assert best_rows(replace(job, rates=replace(job.rates, write_bytes=1 << 20))) == 1024  # files of a GiB
    assert best_rows(replace(job, engine="local")) > best_rows(job)  # whose work survives within a file


def test_the_slowest_stage_decides() -> None:
    assert RATES.slowest == "encode"
    slow = replace(RATES, cores=2)
    assert slow.slowest == "decode" and slow.image_s == 0.005
    assert replace(RATES, read_bytes=10**7, read_bytes_s=10**9).slowest == "read"
    assert replace(RATES, write_bytes=10**7, write_bytes_s=10**9).slowest == "write"


# --- against a real run ---------------------------------------------------------------------------------

PACE_S, SYNC_S, IMAGES = 0.01, 0.2, 250

CHILD = f"""
import sys, time
from pathlib import Path
from fvexport.export.features import FeatureForm, encode_images, pending
from fvexport.export.runtime import Encoder

pending.SYNC_SECONDS = {SYNC_S}
artifact, images, out = map(Path, sys.argv[1:])

def progress(stage, done, total):
    print(done, flush=True)
    time.sleep({PACE_S})  # an encoder that takes so long, whatever else the machine does

encoder = Encoder(artifact, "onnxruntime-cpu", threads=1)
form = FeatureForm(form="parquet", shard_rows=100)
encode_images(sorted(images.iterdir()), encoder, out, form=form, progress=progress)
"""


class _Run:
    """Encodes in a process, and is killed `lived` seconds after its first image; None for never."""

    def __init__(self, folder: Path, artifact: Path, out: Path, lived: float | None) -> None:
        start = time.perf_counter()
        command = [sys.executable, "-c", CHILD, str(artifact), str(folder), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            self.first = int(child.stdout.readline())
            self.startup = time.perf_counter() - start
            self.last = self.first
            for line in child.stdout:
                self.last = int(line)
                if lived is not None and time.perf_counter() - start - self.startup > lived:
                    child.kill()
                    break
        self.seconds = time.perf_counter() - start
        assert lived is not None or child.returncode == 0


@pytest.mark.slow
def test_the_simulation_agrees_with_a_real_run(tmp_path: Path, exported) -> None:
    """A run of the local engine that is killed three times: its seconds, and the images that it does again."""
    pytest.importorskip("pyarrow")
    assert pending.SYNC_SECONDS == 1.0  # what `Rates` has
    artifact: Artifact = exported()
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(folder / f"{number:04}.png")
    lives = [0.75, 0.5, 0.9]
    runs = [_Run(folder, artifact.path, tmp_path / "out", lived) for lived in (*lives, None)]
    again = sum(before.last - after.first for before, after in itertools.pairwise(runs))
    startup = statistics.mean(run.startup for run in runs)
    rates = Rates(
        encode_s=PACE_S, decode_s=1e-4, cores=1, sync_s=SYNC_S, bad=0, shard_s=0.01, startup_s=startup, restart_s=0
    )
    job = Job(images=IMAGES, gpus=1, engine="local", rows=100, rates=rates)
    expected = simulate(job, given([startup + lived for lived in lives]))
    assert expected.losses == 3
    assert sum(run.seconds for run in runs) == pytest.approx(expected.seconds, rel=0.3)
    # At most an interval of the journal and an image for each kill; on average half of it.
    assert 0 < expected.again <= 3 * (SYNC_S / PACE_S + 1)
    assert 0 < again <= 3 * (SYNC_S / PACE_S + 4)


# --- the command and the page ---------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    measured = tmp_path / "rates.json"
    measured.write_text(json.dumps({"encode_s": 2e-3, "decode_s": 0.01, "loss_s": 0, "bad": 0}), encoding="utf-8")
    arguments = ["--measured", str(measured), "--images", "1e5", "--gpus", "4", "--rows", "500", "--simulate"]
    done = CliRunner().invoke(command.main, [*arguments, "--rate", "startup_s=0", "--rate", "shard_s=0"])
    assert done.exit_code == 0, done.output
    for name in ("closed form", "simulation"):
        assert f"{name}: {25_000 * 2e-3 / 3600:.4g} h" in done.output


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("{", [], "has no rates"),
        ('{"encode_s": -1, "decode_s": 1}', [], "encode_s"),
        ('{"encode_s": 1, "decode_s": 1, "speed": 2}', [], "speed: not a rate"),
        (None, ["--rate", "loss"], "NAME=VALUE"),
        (None, ["--rate", "bad=1"], "$.bad"),
        (None, ["--res", "640"], "no measurement of 640 b8"),
        (None, ["--photo", "1x1"], "no measurement of 1x1"),
        (None, ["--photo", "wide"], "WIDTHxHEIGHT"),
        (None, ["--images", "1e9", "--simulate"], "--simulate"),
    ],
)
def test_bad_input(tmp_path: Path, content: str | None, arguments: list[str], words: str) -> None:
    if content is not None:
        (tmp_path / "rates.json").write_text(content, encoding="utf-8")
        arguments = ["--measured", str(tmp_path / "rates.json")]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 1 and words in done.output and len(done.output.splitlines()) == 1


def test_the_page_has_the_tables(tmp_path: Path) -> None:
    page = REPOSITORY / "docs" / "scale.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    done = CliRunner().invoke(command.main, ["--page", str(copy)])
    assert done.exit_code == 0, done.output
    renew = "python -m fvexport.benchmarks.studies.scale --page docs/scale.md"
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), renew


def test_the_commands_of_the_page() -> None:
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m fvexport\.benchmarks\.studies\.scale (--images .*)$", page, re.M)
    assert len(lines) == 2
    for line in lines:
        done = CliRunner().invoke(command.main, line.split())
        assert done.exit_code == 0 and "closed form" in done.output, done.output


def test_no_rates() -> None:
    with pytest.raises(ConfigError, match="no rates"):
        command.read_rates(Path(__file__).parent / "missing.json")
