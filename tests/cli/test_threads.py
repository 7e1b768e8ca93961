"""`--threads` of every command that computes: it reaches the runtimes and PyTorch; senseless numbers are refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from fvexport.core import hardware


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Threads of every onnxruntime session, and of PyTorch when it encodes or decodes, as they are used."""
    import onnxruntime
    import torch

    from fvexport.encoder.fastvlm import model
    from fvexport.export.runtime.eager_backend import EagerBackend

    found: dict[str, list[int]] = {"onnxruntime": [], "torch": []}

    class Session(onnxruntime.InferenceSession):
        def run(self, *args, **kwargs):
            found["onnxruntime"].append(self.get_session_options().intra_op_num_threads)
            return super().run(*args, **kwargs)

    forward, decode = EagerBackend.forward, model.decode

    def seen_forward(self, *args, **kwargs):
        found["torch"].append(torch.get_num_threads())
        return forward(self, *args, **kwargs)

    def seen_decode(*args, **kwargs):
        found["torch"].append(torch.get_num_threads())
        return decode(*args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(EagerBackend, "forward", seen_forward)
    monkeypatch.setattr(model, "decode", seen_decode)
    return found


def test_encode(fvexport, artifact: Path, pictures: list[Path], seen: dict[str, list[int]]) -> None:
    assert fvexport("encode", pictures[0], "--artifact", artifact, "--out", "a.safetensors", "--threads", 3).code == 0
    assert set(seen["onnxruntime"]) == {3}
    options = ("--artifact", artifact, "--backend", "eager", "--out", "b.safetensors", "--threads", 3)
    assert fvexport("encode", pictures[0], *options).code == 0
    assert set(seen["torch"]) == {3}


@pytest.mark.parametrize("options", [(), ("--layers",)], ids=str)
def test_parity(fvexport, artifact: Path, pictures: list[Path], seen: dict[str, list[int]], options: tuple) -> None:
    assert fvexport("parity", artifact, "--images", pictures[0], *options, "--threads", 3).code == 0
    assert set(seen["onnxruntime"]) == {3} and set(seen["torch"]) == {3}


def test_ask_and_eval(
    fvexport, vlm_dir: Path, vlm_artifact: Path, pictures: list[Path], seen: dict[str, list[int]], tmp_path: Path
) -> None:
    options = ("--checkpoint", vlm_dir, "--artifact", vlm_artifact, "--max-new-tokens", 2, "--threads", 3)
    assert fvexport("ask", pictures[0], "What is this?", *options).code == 0
    assert set(seen["onnxruntime"]) == {3} and set(seen["torch"]) == {3}
    (tmp_path / "items.jsonl").write_text(json.dumps({"image": str(pictures[0]), "question": "What?"}) + "\n")
    for command in (("ask", "--batch", "items.jsonl"), ("eval", "--task", "vqa", "--data", "items.jsonl")):
        for kind in seen.values():
            kind.clear()
        outcome = fvexport(*command, "--out", f"{command[0]}.jsonl", *options)
        assert outcome.code == 0, outcome.err
        assert set(seen["onnxruntime"]) == {3} and set(seen["torch"]) == {3}


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "a.png", "--artifact", "a", "--out", "f.safetensors"), ("parity", "a"), ("sweep",),
        ("ask", "a.png", "What?", "--checkpoint", "c"),
        ("eval", "--task", "vqa", "--data", "d", "--out", "o", "--checkpoint", "c"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
@pytest.mark.parametrize("count", ["0", "-1", "1000000", "two"])
def test_senseless_numbers(fvexport, command: tuple[str, ...], count: str) -> None:
    fvexport(*command, f"--threads={count}").one_line_error("--threads", code=2)


def test_many_threads_take_no_longer(fvexport, artifact: Path, pictures: list[Path]) -> None:
    """Threads of onnxruntime that spin keep each other waiting: this took a minute."""
    start = time.monotonic()
    command = ("encode", pictures[0], "--artifact", artifact, "--out", "a.safetensors", "--threads", 512)
    assert fvexport(*command, "--backend", "onnxruntime-cpu").code == 0
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(("quota", "before", "expected"), [(0.5, None, "1"), (0.5, "7", "7"), (None, None, None)])
def test_quota_reaches_every_library(
    fvexport, monkeypatch: pytest.MonkeyPatch, quota: float | None, before: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
    monkeypatch.setattr(hardware, "usable_cores", lambda: [0, 1])
    monkeypatch.setenv("OMP_NUM_THREADS", before or "")
    if before is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert fvexport("--version").code == 0
    assert os.environ.get("OMP_NUM_THREADS") == expected
