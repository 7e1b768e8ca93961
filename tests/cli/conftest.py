"""One small artifact for all tests of the command line, and ways to call it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Outcome:
    """What a command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def one_line_error(self, *parts: str, code: int = 1) -> None:
        """Asserts that it ended with one line on stderr, which holds `parts`, and nothing on stdout."""
        assert self.code == code, self
        assert self.out == ""
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err


Command = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def _translations(torchlib_once: None) -> None:
    """For every test of this folder."""


@pytest.fixture
def fvexport(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls the entry point in this process (torch is imported once), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> Outcome:
        from fvexport.cli.main import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        return Outcome(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """Calls the command as a process of its own, in an empty folder."""

    def call(*args: object) -> Outcome:
        command = [sys.executable, "-m", "fvexport", *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def exported(made_once: Callable[..., Path]) -> tuple[Outcome, Path]:
    """What `fvexport onnx` printed for the small variant at 128 x 128, and the artifact."""

    def write(out: Path) -> None:
        out.mkdir()
        command = ["onnx", "--variant", "tiny", "--res", "128", "--out", str(out / "tiny 128")]
        done = subprocess.run(
            [sys.executable, "-m", "fvexport", *command], cwd=out, capture_output=True, text=True, check=False
        )
        (out / "printed").write_text(json.dumps((done.returncode, done.stdout, done.stderr)))

    made = made_once("fvexport onnx", write)
    return Outcome(*json.loads((made / "printed").read_text())), made / "tiny 128"


@pytest.fixture(scope="session")
def artifact(exported: tuple[Outcome, Path]) -> Path:
    """An artifact of the small variant at 128 x 128; not to be changed."""
    assert exported[0].code == 0, exported[0].err
    return exported[1]


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact to damage."""
    return shutil.copytree(artifact, tmp_path / "copied")


@pytest.fixture(scope="session")
def vlm_dir(fastvlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FastVLM whose answers depend on the picture; not to be written to.

    The golden model's features are nearly alike for all pictures, so it gets the seeded encoder, and weights by which
    its language model attends to them.
    """
    from safetensors.torch import load_file, save_file

    from fvexport.encoder.checkpoint import load_checkpoint
    from fvexport.encoder.checkpoint.forms import detect

    folder = shutil.copytree(fastvlm_dir, tmp_path_factory.mktemp("vlm") / "FastVLM-tiny")
    tensors = load_file(folder / "model.safetensors")
    naming = detect(list(tensors))
    assert naming is not None
    for name in list(tensors):
        if name.startswith(naming.prefix):
            del tensors[name]
        for part, factor in {"o_proj": 30, "q_proj.weight": 3, "mm_projector.2.weight": 5, "lm_head": 5}.items():
            if part in name:
                tensors[name] = tensors[name] * factor
    for name, tensor in load_checkpoint(None, variant="tiny", seed=1).encoder.state_dict().items():
        tensors[naming.file_name(name)] = tensor
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def vlm_artifact(vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the tiny FastVLM's encoder at 128 x 128; not to be changed."""
    from fvexport.export.export_options import ExportOptions
    from fvexport.export.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("vlm") / "tiny-128"
    options = ExportOptions(height=128, width=128, simplify=False)
    export_onnx(str(vlm_dir), folder, options=options, parity=False)
    return folder


@pytest.fixture
def other_weights(vlm_artifact: Path, tmp_path: Path) -> Path:
    """The same artifact, said to be made from other weights than the tiny FastVLM's."""
    folder = shutil.copytree(vlm_artifact, tmp_path / "other")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checkpoint"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six pictures, two of each of three kinds that look nothing alike, none of them square."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    ramp = np.linspace(0, 255, 150, dtype=np.uint8)
    kinds = [
        np.stack([ramp * 0 + 200, ramp * 0 + 20, ramp * 0], axis=-1)[None].repeat(100, 0),
        np.stack([ramp, ramp, ramp], axis=-1)[None].repeat(100, 0),
        np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8),
    ]
    found = []
    for number, pixels in enumerate(kinds * 2):
        found.append(folder / f"{number}.png")
        Image.fromarray(pixels ^ (number // 3)).save(found[-1])
    return found
