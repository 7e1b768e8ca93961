"""Cells of a sweep with real models: files, references, every form, peers, the time to first token; and the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch

from fvexport.benchmarks.peers.table import PEERS, get_peer, load_peer, make_peer_file, why_peer_absent
from fvexport.benchmarks.sweep import loading
from fvexport.benchmarks.sweep.cell_runner import CellRunner
from fvexport.benchmarks.sweep.file_builder import FileBuilder
from fvexport.benchmarks.sweep.loading import Loaded
from fvexport.benchmarks.sweep.messages import ArtifactRequest, File, ReferenceRequest, TorchRequest, WeightSource
from fvexport.benchmarks.sweep.prefilling import TtftTimer
from fvexport.benchmarks.sweep.result import PARITY_FIGURES, Cell
from fvexport.benchmarks.sweep.timing import DeviceTimer, Energy, WallTimer, take_window
from fvexport.benchmarks.tasks import ttft
from fvexport.core.records import plain
from fvexport.core.verdict.figures import compare
from fvexport.core.verdict.reference import Reference
from fvexport.core.verdict.sections import FiguresSection
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.export import parity
from fvexport.export.artifact import Artifact
from fvexport.export.backend_table import get_backend, why_absent
from fvexport.export.parity import THRESHOLDS
from fvexport.kernels.timing import CaptureError, HostClock

WEIGHTS = WeightSource(variant="tiny")
SIZE = {"height": 64, "width": 128}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where the eager forms run."""


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """For every test of this file."""


@pytest.fixture(scope="module")
def builder() -> FileBuilder:
    return FileBuilder(WEIGHTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, builder: FileBuilder) -> Path:
    """A folder with the reference of 64 x 128 pixels and the artifact `fp32`."""
    folder = tmp_path_factory.mktemp("cells")
    builder.reference(ReferenceRequest(path=str(folder / "reference.npz"), **SIZE))
    made(builder, folder / "fp32", "fp32")
    return folder


def made(builder: FileBuilder, path: Path, precision: Any, target: Any = None, batch: int = 1) -> File:
    return builder.artifact(
        ArtifactRequest(path=str(path), precision=precision, target=target, engine=None, batch=batch, samples=2, **SIZE)
    )


def cell(backend: str = "onnxruntime-cpu", precision: str = "fp32", **changes: Any) -> Cell:
    known: dict[str, Any] = {
        "kind": "ours", "batch": 1, "threads": 1, "variant": "tiny", "checkpoint": "seeded:0", "weights": "0" * 12,
    }  # fmt: skip
    return Cell(backend=backend, precision=precision, **SIZE, **(known | changes))


def running(cell: Cell, place: Path, file: Path | None, weights: WeightSource = WEIGHTS) -> CellRunner:
    return CellRunner(cell, weights, None if file is None else str(file), str(place / "reference.npz"))


# --- files -------------------------------------------------------------------------------------


def test_the_reference_is_the_eager_model_of_photographs(place: Path) -> None:
    with np.load(place / "reference.npz") as known:
        values, features = known["values"], known["features"]
    assert values.shape == (2, 3, 64, 128) and values.dtype == np.float32
    exact = load_checkpoint(variant="tiny").encoder.double()
    with torch.inference_mode():
        wanted = exact(torch.from_numpy(values).double()).numpy()
    assert features.shape == wanted.shape == (2, 2, wanted.shape[2])
    assert compare(wanted, features).rel_l2 < 1e-5


def test_an_artifact_is_exported_once_and_again_for_other_weights(
    builder: FileBuilder, place: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(place / "fp32", tmp_path / "fp32")
    shutil.copy(place / "fp32.json", tmp_path / "fp32.json")
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    seconds = made(builder, folder, "fp32").seconds
    assert seconds is not None and seconds > 0
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    other = FileBuilder(WeightSource(variant="tiny", seed=1))
    made(other, folder, "fp32")
    assert Artifact.open(folder).manifest.checkpoint.sha256 == other.describe().sha256
    # A cell that runs these by mistake is found out.
    found = running(cell(), place, folder).parity
    assert found is not None and found.status == "fail" and found.rel_l2 > THRESHOLDS["fp32"].rel_l2_limit


def test_weights_are_described(builder: FileBuilder) -> None:
    found = builder.describe()
    assert (found.checkpoint, found.variant) == ("seeded:0", "tiny")
    assert found.sha256 == load_checkpoint(variant="tiny").info.sha256


# --- cells -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "precision"),
    [("train", "fp32"), ("fused", "fp32"), ("channels-last", "fp32"), ("train", "bf16"), ("fused", "bf16"),
     pytest.param("channels-last", "bf16", marks=pytest.mark.long)],
)  # fmt: skip
def test_every_eager_form_is_the_same_model(place: Path, builder: FileBuilder, form: str, precision: str) -> None:
    file = place / precision
    if form == "channels-last" and not file.exists():
        made(builder, file, precision)
    found = running(cell("eager", precision, form=form), place, file if form == "channels-last" else None)
    told = found.ready()
    assert told.parity is not None
    assert told.parity.status == "pass" and told.device == DEVICE and told.tokens == 2
    # bfloat16 has 8 bits: it is a different computation, and not a wildly different one.
    assert (told.parity.sqnr_db is None or told.parity.sqnr_db > 90) == (precision == "fp32")
    assert ("train form" if form == "train" else "fused form") in told.computes
    assert {"fp32": "float32", "bf16": "bfloat16"}[precision] in told.computes


def test_a_window_is_timed_and_weighed(place: Path) -> None:
    found = running(cell(), place, place / "fp32")
    window = found.window(seconds=0.02, max_calls=5)
    assert 1 <= len(window.times_ms) <= 5 and min(window.times_ms) > 0
    assert window.gpu_mb is window.energy_j is None
    if sys.platform == "linux":
        assert 50 < window.run_host_mb <= 1e5


def test_a_batch_is_compared_image_by_image(place: Path, builder: FileBuilder, tmp_path: Path) -> None:
    batch = 3  # more than there are photographs
    made(builder, tmp_path / "batch", "fp32", batch=batch)
    found = running(cell(batch=batch), place, tmp_path / "batch")
    assert found.x.shape == (batch, 3, 64, 128)
    assert found.parity is not None and found.parity.status == "pass" and found.parity.rel_l2 < 1e-4


@pytest.mark.parametrize("wrong", [0.0, 1e-4])
def test_a_cell_gets_the_verdict_of_an_export(
    place: Path, builder: FileBuilder, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """An error between twice PyTorch's own and what is ever allowed fails both; without PyTorch's figures it passes."""
    own = made(builder, place / "fp32", "fp32").torch

    def with_error(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
        backend = make(*args, **options)
        run = backend.run
        monkeypatch.setattr(backend, "run", lambda x: run(x) * np.float32(1 + wrong))
        return backend

    monkeypatch.setattr(parity, "parity_backend", partial(with_error, parity.parity_backend))
    monkeypatch.setattr(loading, "make_backend", partial(with_error, loading.make_backend))
    verdict = parity.check_parity(place / "fp32", checkpoint=builder.checkpoint)
    arguments = (cell(), WEIGHTS, str(place / "fp32"), str(place / "reference.npz"))
    found = CellRunner(*arguments, own).parity
    assert found is not None and found.status == verdict.status == ("fail" if wrong else "pass")
    for name in PARITY_FIGURES:
        assert getattr(found, name) == pytest.approx(getattr(verdict.figures, name), rel=1e-5)
    assert plain(own) == pytest.approx(verdict.torch.to_dict(), rel=1e-5)
    unknown = CellRunner(*arguments, None).parity
    assert unknown is not None and unknown.status == "pass"


def test_pytorch_is_measured_once_per_precision(builder: FileBuilder, tmp_path: Path) -> None:
    def figures(precision: Any) -> FiguresSection:
        request = TorchRequest(path=str(tmp_path / f"{precision}.json"), precision=precision, **SIZE)
        torch = builder.torch(request).torch
        assert torch is not None
        return torch

    found = {p: figures(p) for p in ("fp32", "bf16")}
    fp32, bf16 = found["fp32"].centred_rel_l2, found["bf16"].centred_rel_l2
    assert fp32 is not None and bf16 is not None and fp32 < 1e-4 < bf16 < 0.1
    other = msgspec.structs.replace(found["bf16"], rel_l2=1.0)
    (tmp_path / "bf16.json").write_text(json.dumps({"torch": plain(other)}))
    assert figures("bf16") == other
    made(builder, tmp_path / "bf16", "bf16")
    note = json.loads((tmp_path / "bf16.json").read_text())
    assert note["torch"] == pytest.approx(plain(found["bf16"]), rel=1e-3)


def test_a_reference_of_an_earlier_version_judges_every_token(place: Path, tmp_path: Path) -> None:
    known = Reference.load(str(place / "reference.npz"))
    assert known.seen.all()  # two tokens side by side: each sees a part of both photographs
    np.savez(tmp_path / "old.npz", values=known.values, features=known.features)
    old = Reference.load(str(tmp_path / "old.npz"))
    assert old.seen.all() and old.seen.shape == known.features.shape[:2]


@pytest.mark.long
def test_int8_is_judged_as_int8(place: Path, builder: FileBuilder, tmp_path: Path) -> None:
    made(builder, tmp_path / "int8", "int8", "onnxruntime-cpu")
    found = running(cell(precision="int8", samples=2), place, tmp_path / "int8").parity
    assert found is not None and found.status == "pass" and 14 < found.sqnr_db < 60


# --- timing ------------------------------------------------------------------------------------


class Clock(WallTimer):
    """Every call takes 100 ms, on its own clock."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.calls = 0

    def once(self) -> float:
        self.calls += 1
        return 100.0


@pytest.mark.parametrize(
    ("seconds", "most", "expected", "counted", "called"),
    [(0.45, 50, 100.0, 5, 6), (10, 4, 100.0, 4, 5), (0, 50, 1300.0, 1, 1), (0.15, 50, 1300.0, 2, 2)],
)
def test_windows_last_their_time(seconds: float, most: int, expected: float, counted: int, called: int) -> None:
    clock = Clock()
    times, calls = take_window(clock, seconds, most, expected)
    assert (len(times), calls, clock.calls) == (counted, called, called)


class FakeDevice(HostClock):
    """A GPU's clock that says each run takes 2 ms, and knows two calls that no graph can hold."""

    def __init__(self, *, refuses: bool = False, ahead: bool = True) -> None:
        super().__init__()
        self.refuses, self.ahead, self.runs = refuses, ahead, list[Any]()

    def measure(self, run: Any, runs: int = 1) -> float:
        self.runs.append(run)
        run()
        return 2.0 * runs

    def capture(self, runs: Any, copies: int) -> Any:
        if self.refuses:
            raise CaptureError("the call replays one of its own")
        return super().capture(runs, copies)


def test_a_call_is_timed_as_a_graph() -> None:
    x = torch.arange(4.0)
    clock = FakeDevice()
    timer = DeviceTimer(lambda v: v + 1, x, captures=True, clock=clock)
    assert (timer.name, timer.note, timer.once()) == ("cuda-graph", "", 2.0)
    assert torch.equal(cast("torch.Tensor", timer.result), x + 1) and clock.runs[-1] is timer.launch
    plain = DeviceTimer(lambda v: v + 1, x, captures=False, clock=FakeDevice())
    assert (plain.name, plain.note, plain.once()) == ("cuda-events", "", 2.0)


def test_a_call_without_a_graph_says_why() -> None:
    timer = DeviceTimer(lambda v: v + 1, torch.ones(1), captures=True, clock=FakeDevice(refuses=True, ahead=False))
    assert timer.name == "cuda-events" and timer.note == (
        "no CUDA graph: the call replays one of its own; the call waits for the GPU: the host's time is in it"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("captures", [True, False])
def test_device_time_of_a_call(captures: bool) -> None:
    x = torch.randn(512, 512, device="cuda")
    timer = DeviceTimer(lambda v: v @ v, x, captures=captures)
    assert (timer.name, timer.note) == (("cuda-graph" if captures else "cuda-events"), "")
    assert 0 < min(timer.once() for _ in range(5)) < 50
    if captures:
        assert torch.allclose(cast("torch.Tensor", timer.result), x @ x)


@pytest.mark.gpu
def test_what_cannot_be_recorded_is_timed_all_the_same() -> None:
    timer = DeviceTimer(lambda v: v * float(v.sum().item()), torch.ones(8, device="cuda"), captures=True)
    assert timer.name == "cuda-events" and timer.note.startswith("no CUDA graph: ")
    assert timer.once() > 0
    assert torch.rand(2, device="cuda").numel() == 2  # the generator is no longer in a capture


def test_energy_is_not_counted_on_a_cpu() -> None:
    assert Energy("cpu").read() is None


# --- time to first token -----------------------------------------------------------------------


@pytest.fixture
def small_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        ttft.DIMENSIONS, "qwen2-0.5b",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 100, "tie_word_embeddings": True},
    )  # fmt: skip


@pytest.mark.usefixtures("small_llm")
@pytest.mark.parametrize("tiles", [1, 5])
def test_the_first_token_takes_three_parts(place: Path, tiles: int) -> None:
    one = cell(kind="ttft", llm="qwen2-0.5b", prompt_tokens=7, tiles=tiles)
    found = running(one, place, place / "fp32")
    assert isinstance(found.timer, TtftTimer)
    assert found.parity is None and found.tokens == 2 * tiles and found.x.shape[0] == tiles
    window = found.window(seconds=0.01, max_calls=3)
    assert len(window.parts_ms) == len(window.times_ms)
    for parts, total in zip(window.parts_ms, window.times_ms, strict=True):
        assert min(parts) > 0 and sum(parts) == pytest.approx(total)
    assert "language model in float32" in found.ready().computes


@pytest.mark.usefixtures("small_llm")
def test_a_model_sees_every_tile(place: Path) -> None:
    seen: list[Any] = []

    def run(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return np.zeros((1, 2, load_checkpoint(variant="tiny").encoder.config.out_channels), np.float32)

    x = np.random.default_rng(0).random((5, 3, 64, 128), dtype=np.float32)
    timer = TtftTimer(cell(kind="ttft", llm="qwen2-0.5b", prompt_tokens=3, tiles=5), WEIGHTS, Loaded(run, "", "cpu"), x)
    timer.once()
    assert np.array_equal(np.concatenate(seen), x)


# --- peers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer_files(tmp_path_factory: pytest.TempPathFactory, builder: FileBuilder) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("peers")

    def make(name: str) -> Path:
        return make_peer_file(get_peer(name), builder.checkpoint, folder, 64, 64, 1, 2)[-1].path

    return make


@pytest.mark.parametrize(
    ("name", "precision", "least_db", "most_db"),
    [("plain-onnxruntime", "fp32", 90, 200), ("plain-openvino", "fp32", 90, 200),
     ("plain-quantize-static", "int8", 0, 40)],
)  # fmt: skip
def test_plain_ways_run_the_same_weights(
    peer_files: Callable[[str], Path], builder: FileBuilder, tmp_path: Path, name: str, precision: str, least_db: float,
    most_db: float,
) -> None:  # fmt: skip
    if (reason := why_absent(get_backend(get_peer(name).target))) is not None:
        pytest.skip(reason)
    builder.reference(ReferenceRequest(path=str(tmp_path / "reference.npz"), height=64, width=64))
    with np.load(tmp_path / "reference.npz") as known:
        values, features = known["values"], known["features"]
    peer = load_peer(get_peer(name), precision, peer_files(name), lambda: builder.checkpoint, 1)
    found = compare(features[:1], peer.run(values[:1]))
    assert least_db < found.sqnr_db < most_db and peer.computes and peer.device == "cpu" and peer.run_tensor is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_peer_does_not_compute_float16_on_a_cpu() -> None:
    compiled = get_peer("plain-torch-compile")
    assert why_peer_absent(compiled, "fp16", 64, 64, 1) == "PyTorch takes minutes for float16 convolutions on a CPU"
    assert why_peer_absent(compiled, "bf16", 64, 64, 1) == why_absent(get_backend("torch-compile"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_compiled_peer_is_timed_on_the_gpu(place: Path, precision: str) -> None:
    found = running(cell("plain-torch-compile", precision, kind="peer"), place, None)
    told = found.ready()
    assert told.timer == "cuda-events" and "reduce-overhead" in told.computes and told.device == "cuda"
    assert told.parity.status == "pass" and found.window(0.02, 5).times_ms


@pytest.mark.gpu
def test_our_kernels_are_timed_as_one_graph(place: Path, builder: FileBuilder, tmp_path: Path) -> None:
    made(builder, tmp_path / "half", "fp16")
    found = running(cell("triton", "fp16", form="channels-last"), place, tmp_path / "half")
    assert found.ready().timer == "cuda-graph" and found.ready().parity.status == "pass"


def test_a_peer_names_what_it_cannot() -> None:
    static = get_peer("plain-quantize-static")
    assert why_peer_absent(static, "int8", 64, 64, 1) is None
    for size in ((64, 128, 1), (64, 64, 8)):
        assert why_peer_absent(static, "int8", *size) == "it calibrates on square pictures, one at a time"
    assert {p.name for p in PEERS} == {"plain-onnxruntime", "plain-openvino", static.name, "plain-torch-compile"}


# --- the command -------------------------------------------------------------------------------


def test_the_command_measures_writes_a_report_and_says_what_next(tmp_path: Path) -> None:
    options = "--variant tiny --res 64 --precision fp32 --backend onnxruntime-cpu --rounds 3 --threads 1 --no-peers"
    command = [sys.executable, "-m", "fvexport", "sweep", *options.split(), "--out", "my sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cells measured in" in done.stdout and "onnxruntime-cpu fp32" in done.stdout
    assert "next: fvexport report 'my sweep' OTHER_SWEEP" in done.stdout
    assert max(map(len, done.stdout.split("report: ")[0].splitlines())) <= 80
    assert (tmp_path / "my sweep" / "report.html").is_file()
    again = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(again.stdout)
    assert found["measured"] == 0
    (ours,) = found["results"]
    assert ours["status"] in ("ok", "unstable") and ours["parity"]["sqnr_db"] > 90
