"""Real TensorRT on a machine without a GPU, from NVIDIA's packages on PyPI: `make tensorrt-cpu` runs this file.

TensorRT-RTX builds engines ahead of time, with no GPU, and the libraries of full TensorRT do not. So there are

    tensorrt_rtx/   the packages `tensorrt-rtx-cu13*` as a user installs them
    tensorrt/       the packages `tensorrt-cu13` and `-bindings`, whose calls go to the libraries of tensorrt_rtx/:
                    three libraries that gcc makes here carry the names that the bindings ask for
    10.13.3.9/ …    bindings of TensorRT 10 over libraries that do nothing: enough to ask which names they have

each a folder for `sys.path`, all in one that is named after the versions, so that it is made once. Builder, network,
parser, profiles, timing cache and inspector are the real ones. What is not there: loading and running an engine, which
takes a GPU, and plugins, whose library is NVIDIA's alone.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

FULL, RTX = "11.4.0.106", "1.7.1.116"
NAMES_ONLY = (*(("10.3.0",) if sys.version_info < (3, 13) else ()), "10.9.0.34", "10.13.3.9")
"""One from the start of TensorRT 10, of which no later Python has a wheel; one that has plugins in Python; one late."""

PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
FOLDER = Path(__file__).parents[1] / "build" / "tensorrt-cpu" / "-".join((PYTHON, FULL, RTX, *NAMES_ONLY))

NOTHING = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
"""What the bindings of TensorRT 10 ask their libraries for."""

LOADER = '''"""Loads the libraries beside this file before the bindings ask for them."""

import ctypes
import pathlib

for name in {names!r}:
    ctypes.CDLL(str(pathlib.Path(__file__).parent / name), mode=ctypes.RTLD_GLOBAL)
'''


def why_not() -> str | None:
    """None where it is there to be used, else the reason."""
    if (reason := _why_impossible()) is not None:
        return reason
    return None if FOLDER.is_dir() else "no TensorRT for tests; `make tensorrt-cpu`"


def _why_impossible() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the TensorRT of the tests exists for Linux on x86-64 alone"
    return None if shutil.which("gcc") else "the TensorRT of the tests needs gcc"


def assemble() -> None:
    """Makes `FOLDER` where it is missing, whole or not at all, once for any number of processes."""
    from filelock import FileLock

    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER.parent / ".lock"):
        if FOLDER.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
            made = Path(scratch) / FOLDER.name
            _rtx(made / "tensorrt_rtx")
            _full(made / "tensorrt", made / "tensorrt_rtx" / "tensorrt_rtx_libs")
            for version in NAMES_ONLY:
                _names_only(made / version, version)
            _try(made)
            made.rename(FOLDER)


def _rtx(folder: Path) -> None:
    _install(folder, *(f"tensorrt-rtx-cu13{part}=={RTX}" for part in ("", "-bindings", "-libs")))


def _full(folder: Path, rtx_libraries: Path) -> None:
    """The wheel `tensorrt-cu13-libs` would bring `tensorrt_libs`; ours leads on to RTX's libraries."""
    _install(folder, *(f"tensorrt-cu13{part}=={FULL}" for part in ("", "-bindings")))
    libraries = folder / "tensorrt_libs"
    libraries.mkdir()
    to = os.path.relpath(rtx_libraries, libraries)
    onward = ["-Wl,--no-as-needed", f"-L{rtx_libraries}", f"-Wl,-rpath,$ORIGIN/{to}"]
    for name, leads_to in (("nvinfer", "libtensorrt_rtx.so.1"), ("nvonnxparser", "libtensorrt_onnxparser_rtx.so.1")):
        _compile(libraries / f"lib{name}.so.11", "int fvexport_forward;", *onward, f"-l:{leads_to}")
    no_plugins = "int initLibNvInferPlugins(void *logger, const char *name) { return 1; }"
    _compile(libraries / "libnvinfer_plugin.so.11", no_plugins)
    _load(libraries)


def _names_only(folder: Path, version: str) -> None:
    _install(folder, f"tensorrt-cu12-bindings=={version}")
    libraries = folder / "tensorrt_libs"
    libraries.mkdir()
    nothing = "".join(f"void *{function}(void) {{ return 0; }}\n" for function in NOTHING)
    for name, code in (("nvinfer", nothing), ("nvonnxparser", ""), ("nvinfer_plugin", "")):
        _compile(libraries / f"lib{name}.so.10", code)
    _load(libraries)
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(
        "import tensorrt_bindings\n"
        "from tensorrt_bindings import *\n"
        "from tensorrt_bindings import __version__\n"
        "__path__ += tensorrt_bindings.__path__  # tensorrt.plugin\n"
    )


def _install(folder: Path, *packages: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    # Several releases have a source package whose one file imports the bindings: built here, with what pip fetches.
    subprocess.run([*pip, "--target", str(folder), *packages], check=True)


def _compile(library: Path, code: str, *options: str) -> None:
    gcc = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-x", "c", "-", "-o", str(library)]
    subprocess.run([*gcc, *options], input=code, text=True, check=True)


def _load(libraries: Path) -> None:
    names = sorted(file.name for file in libraries.iterdir())
    (libraries / "__init__.py").write_text(LOADER.format(names=names))


def _try(made: Path) -> None:
    """Each of them in a process of its own, as the tests will use it."""
    network = "assert trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0) is not None"
    for folder in sorted(made.iterdir()):
        version = {"tensorrt": FULL, "tensorrt_rtx": RTX}.get(folder.name, folder.name)
        name = "tensorrt_rtx" if folder.name == "tensorrt_rtx" else "tensorrt"
        code = [f"import {name} as trt", f"assert trt.__version__ == {version!r}, trt.__version__"]
        _run(folder, [*code, network] if folder.name not in NAMES_ONLY else code)


def _run(folder: Path, code: Iterable[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "-c", "\n".join(code)], env=environment, check=True)


if __name__ == "__main__":
    if (impossible := _why_impossible()) is not None:
        sys.stdout.write(f"{impossible}; tests that use it will be skipped\n")
    else:
        try:
            assemble()
        except subprocess.CalledProcessError as error:
            sys.exit(f"no TensorRT for the tests: {error.cmd[0]} ended with {error.returncode}")
