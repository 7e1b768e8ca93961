"""Fixtures shared by all tests, and what happens to tests that need a GPU where there is none."""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.util
import os
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes at once: each keeps to one core, and so do those it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out tests marked `long` unless `-m` names them, and skips those marked `gpu` on a machine without one.

    `-m "not long"` among the default options would be lost with any other `-m`. Imports torch only for `gpu`.

    Files with a test marked `slow` come first: of two workers none is to begin such a file when the other has no more.
    """
    slow = {_file_of(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: _file_of(item) not in slow)
    if not re.search(r"\blong\b", config.option.markexpr):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            built = f"this PyTorch ({torch.__version__}) is built for another device"
            why = built if torch.version.cuda is None else "PyTorch finds none"
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {why}"))


def _file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_collection_finish() -> None:
    """Takes what is imported by now out of garbage collection, and collects less often.

    An export makes millions of small objects that live until it ends. With Python's defaults a tenth of its time goes
    into looking at all of them, and at those of torch and sympy, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache, nor does a process that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def torchlib_once() -> Iterator[None]:
    """Has `torch.onnx` read its table of translations once, not anew for each export; see torchlib_table.py.

    Commands that tests start as processes export without this.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*runpy.run_path(str(Path(__file__).parent / "torchlib_table.py"))["read_once"]())
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist share, for what is made once in a run; see `made_once`."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made_once(shared_folder: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(key, make)`: the path that `make(path)` wrote, in whichever worker came first."""
    from filelock import FileLock

    def get(key: str, make: Callable[[Path], object]) -> Path:
        folder = shared_folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        with FileLock(f"{folder}.lock"):
            if not (folder / "whole").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one whose making failed
                folder.mkdir()
                make(folder / "made")
                (folder / "whole").touch()
        return folder / "made"

    return get


@pytest.fixture(scope="session")
def exported(
    made_once: Callable[[str, Callable[[Path], object]], Path], torchlib_once: None, golden_dir: Path
) -> Callable[..., Any]:
    """`exported(precision="fp16", …)`: an artifact at 128 x 128 with these options, made once by one of the workers.

    Of the seeded tiny encoder; `exported("llava_tiny", …)` is of that golden checkpoint. Not to be written to.
    """
    from fvexport.export.artifact import Artifact
    from fvexport.export.export_options import ExportOptions
    from fvexport.export.onnx_export import export_onnx

    made: dict[str, Artifact] = {}

    def export(checkpoint: str | None = None, **options: Any) -> Artifact:
        wanted = ExportOptions(**{"height": 128, "width": 128, **options})
        wanted = replace(wanted, opset=wanted.effective_opset)  # the same file, whether the default was spelled out
        key = repr((checkpoint, wanted))

        def write(out: Path) -> None:
            source = None if checkpoint is None else golden_dir / checkpoint
            variant = "tiny" if checkpoint is None else None
            export_onnx(source, out, options=wanted, variant=variant, parity=False)

        if key not in made:
            made[key] = Artifact.open(made_once(f"artifact {key}", write))
        return made[key]

    return export


@pytest.fixture(scope="session")
def photographs() -> dict[str, Path]:
    """Real photographs by name, from scikit-image's wheel."""
    from fvexport.encoder.image import sample_images

    return sample_images()


@pytest.fixture(scope="session")
def saturates() -> bool:
    """Whether onnxruntime's products of uint8 and int8 saturate here, measured: x86 processors without VNNI."""
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    values = [
        helper.make_tensor_value_info(name, kind, [16, 16])
        for name, kind in (("a", TensorProto.UINT8), ("b", TensorProto.INT8), ("y", TensorProto.INT32))
    ]
    graph = helper.make_graph([node], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    a, b = np.full((16, 16), 255, np.uint8), np.full((16, 16), 127, np.int8)
    return bool((session.run(None, {"a": a, "b": b})[0] != 16 * 255 * 127).any())


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Tiny checkpoints in three public forms, with outputs of the reference implementations."""
    return Path(__file__).parent / "data" / "golden"


@pytest.fixture
def golden(golden_dir: Path) -> Callable[[str], dict[str, Any]]:
    """`golden("llava_tiny")`: a copy of its tensors, by the file's names."""
    from safetensors.torch import load_file

    def read(name: str) -> dict[str, Any]:
        return {key: tensor.clone() for key, tensor in load_file(golden_dir / name / "model.safetensors").items()}

    return read


@pytest.fixture
def renamed(golden: Callable[[str], dict[str, Any]]) -> Callable[[str, str], dict[str, Any]]:
    """`renamed("train", "open_clip")`: the same weights under the names of another form."""
    from fvexport.encoder.checkpoint.forms import timm_to_apple

    llava, transformers = "model.vision_tower.vision_tower.model.", "model.vision_tower.timm_model."

    def rename(weights: str, form: str) -> dict[str, Any]:
        file, prefix = {"train": ("timm_tiny", ""), "released": ("transformers_tiny", transformers)}[weights]
        own = {n.removeprefix(prefix): t for n, t in golden(file).items() if n.startswith(prefix)}
        prefix = {
            "timm": "", "open_clip": "visual.trunk.", "transformers": transformers,
            "transformers_old": transformers.removeprefix("model."), "mobileclip": "image_encoder.model.",
            "llava": llava, "llava_old": llava.removeprefix("model."), "apple": "",
        }[form]  # fmt: skip
        apple = form.startswith(("mobileclip", "llava", "apple"))
        return {prefix + (timm_to_apple(name) if apple else name): tensor for name, tensor in own.items()}

    return rename


@pytest.fixture(scope="session")
def load_golden(golden_dir: Path) -> Callable[[str], dict[str, Any]]:
    """`load_golden("llava_tiny")`: what the reference implementation made, and the `pixels_…` that it took.

    All of them took the same pixels, which stand in one file.
    """
    import numpy as np

    def load(name: str) -> dict[str, Any]:
        made = dict(np.load(golden_dir / name / "golden.npz"))
        sizes = {key.rpartition("_")[2] for key in made if key.startswith("tokens_")}
        pixels = np.load(golden_dir / "pixels.npz")
        return made | {f"pixels_{size}": pixels[f"pixels_{size}"] for size in sorted(sizes)}

    return load


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Models as small as the tests' are slower on several threads, much slower on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def stage_maps() -> Callable[..., list[Any]]:
    """Of a model and its pixels: every stage's feature map, finest first."""

    def call(model: Any, pixel_values: Any) -> list[Any]:
        maps: list[Any] = []
        hooks = [stage.register_forward_hook(lambda _stage, _x, y: maps.append(y)) for stage in model.stages]
        model(pixel_values)
        for hook in hooks:
            hook.remove()
        return maps

    return call


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


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., None]:
    """`write_tokenizer(folder, image_token=False, files="tokenizer.json")`; see tokenizer_files.py."""
    return runpy.run_path(str(Path(__file__).parent / "tokenizer_files.py"))["write_tokenizer"]


@pytest.fixture(scope="session")
def fastvlm_dir(
    golden_dir: Path, write_tokenizer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole tiny FastVLM: the golden model in LLaVA form, and a tokenizer beside it. Not to be written to."""
    folder = tmp_path_factory.mktemp("fastvlm") / "FastVLM-tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden_dir / "llava_tiny" / name, folder / name)
    write_tokenizer(folder)
    return folder
