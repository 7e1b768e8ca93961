"""A model repository of Triton Inference Server: an artifact's file, under the names that the server looks for.

    REPOSITORY/NAME/config.pbtxt            what the server is told of the model
    REPOSITORY/NAME/1/model.onnx            or model.plan; 1 is the version
    REPOSITORY/NAME/1/encoder.onnx.data     weights, under the name that the ONNX file looks for beside itself

The fields are those of `model_config.proto` (github.com/triton-inference-server/common). What the server's backends
demand beyond it: where `max_batch_size` is above 0 it stands for the first axis, which must then be free in the file
(onnxruntime_backend, `CompareDimsSupported`), so a file for one batch size gets 0 and its whole shape.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from .. import __version__
from ..core.dtypes import BITS, DTYPES
from ..core.errors import ArtifactError, ConfigError, one_line
from ..core.input_file import open_regular
from ..core.output_path import check_place
from ..encoder.config import FastViTHDConfig
from .artifact import MODEL_FILE, PLAN_FILE, Artifact, writing
from .backend_table import get_backend
from .manifest import Manifest, TensorSpec
from .operators import operators
from .placement import quant_target
from .server_options import Platform, Served, ServerOptions

DEFAULT = ServerOptions()
CONFIG_FILE = "config.pbtxt"
MARK = "# Made by fvexport"
"""What a `config.pbtxt` of ours begins with."""

VERSION = "1"
MAX_BATCH_SIZE = 8
"""Of a file that takes any batch, where none is asked for."""

MAX_NAME = 255
"""Bytes of a file's name, on all usual disks."""

BACKENDS: dict[Platform, str] = {"onnx": "onnxruntime", "plan": "tensorrt"}
DATA_TYPES = {"uint8": "TYPE_UINT8"} | {dtype: f"TYPE_{name.upper()}" for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Model:
    """What is served: the file, and what its engine's profile says where it has one."""

    artifact: Artifact
    platform: Platform
    name: str
    server: ServerOptions
    max_batch_size: int
    preferred_batch_size: int | None


def model_name(path: str | os.PathLike[str]) -> str:
    """The server's name for the artifact at `path`: its folder's, with `-` for what a URL would have to escape."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).absolute().name)


def check_repository(
    repository: str | os.PathLike[str], artifact: str | os.PathLike[str] | None, served: Served, *,
    server: ServerOptions = DEFAULT, force: bool = False,
) -> None:  # fmt: skip
    """Fails before any work where `write_repository` would fail after it.

    Args:
        repository: the repository, which need not exist.
        artifact: where the artifact will be written; None if that is not known yet.
        served: the file that will be served.
        server: how the server will run it.
        force: replace a model of that name.

    Raises:
        ConfigError: the server cannot run such a file, or the model's name or folder cannot be.
        ArtifactError: nothing can be written there, or a model of that name exists there and `force` is off.
    """
    _check_precision(served.platform, served.precision)
    server.check(served.platform, served.precision)
    if served.platform == "plan" and (reason := _why_not_loaded(served.flavour, strip=served.strip)) is not None:
        raise ConfigError(f"Triton Inference Server cannot serve this engine: {reason}")
    name = "model" if artifact is None else model_name(artifact)
    out = _model_folder(repository, name, artifact)
    # The artifact itself takes as much, where both are on one disk.
    copies = 2 if artifact is None or _disk(Path(artifact)) == _disk(Path(repository)) else 1
    _check_model_folder(out, force=force or artifact is None, need_bytes=copies * served.size)


def artifact_bytes(precision: str, architecture: FastViTHDConfig) -> int:
    """About how many bytes the weights of an export, or its engine, take."""
    side = architecture.stride
    elements = sum(b.count * sum(op.weights for op in b.operators) for b in operators(architecture, side, side))
    return int(1.1 * elements * max(16, BITS[precision]) // 8)


def _disk(path: Path) -> int:
    """The device of the nearest folder above `path` that exists."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path.stat().st_dev


def write_repository(
    artifact: Artifact, repository: str | os.PathLike[str], *, name: str | None = None,
    platform: Platform | None = None, max_batch_size: int | None = None, server: ServerOptions = DEFAULT,
    force: bool = False,
) -> Path:  # fmt: skip
    """Adds an artifact to a model repository, which is made where it does not exist; other models in it are left alone.

    Args:
        artifact: an opened artifact, with or without an engine.
        repository: what `tritonserver --model-repository` is given.
        name: of the model; the artifact's folder's by default.
        platform: `onnx` or `plan`; by default the engine where the artifact has one that the server can load.
        max_batch_size: of a file that takes any batch: the profile's by default, or 8.
        server: how the server runs it.
        force: replace a model of that name.

    Returns:
        The model's folder: whole, or not there (or as it was).

    Raises:
        ConfigError: the server cannot run this file, or not with this batch, or the model's name or folder cannot be.
        ArtifactError: a model of that name stands there, or the folder cannot be written.
    """
    manifest = artifact.manifest
    platform = platform or ("plan" if why_no_plan(manifest) is None else "onnx")
    if platform not in get_args(Platform):
        raise ConfigError(f"unknown platform {platform!r}; known are {', '.join(get_args(Platform))}")
    _check_precision(platform, manifest.precision)
    server.check(platform, manifest.float_precision)
    if platform == "plan" and (reason := why_no_plan(manifest)) is not None:
        raise ConfigError(f"Triton Inference Server cannot serve an engine of {artifact.path}: {reason}")
    name = model_name(artifact.path) if name is None else name
    out = _model_folder(repository, name, artifact.path)
    model = _Model(artifact, platform, name, server, *_batches(manifest, platform, max_batch_size))

    sources = dict(_files(artifact, platform))
    _check_model_folder(out, force=force, need_bytes=sum(file.stat().st_size for file in sources.values()))
    with writing(out, force=force, ours=_is_model) as folder:
        (folder / VERSION).mkdir()
        with artifact.one_version():
            for target, file in sources.items():
                shutil.copyfile(file, folder / VERSION / target)
        (folder / CONFIG_FILE).write_text(_config(model), encoding="utf-8", errors="replace")
    return out


def why_no_plan(manifest: Manifest) -> str | None:
    """None where the artifact has an engine that the server can load, else the reason."""
    engine = manifest.engine
    if engine is None or PLAN_FILE not in manifest.files:
        return "it has none; make one with `fvexport trt`"
    return _why_not_loaded(engine.flavour, strip=engine.options.strip)


def _why_not_loaded(flavour: str, *, strip: bool) -> str | None:
    if flavour != "tensorrt":
        return (
            "it is of TensorRT-RTX, and the server's backend is full TensorRT; build it there, or serve the ONNX file"
        )
    return "it has no weights, and the server cannot put them in; build it without --strip" if strip else None


def _check_precision(platform: Platform, precision: str) -> None:
    if platform == "onnx" and precision == "fp8":
        raise ConfigError(
            "onnxruntime, which serves the ONNX file, refuses FP8 unless told not to move Q/DQ, and the server cannot "
            "tell it; serve an engine of it (`fvexport trt --fp8 --triton-server`), or export --int8"
        )


def _model_folder(repository: str | os.PathLike[str], name: str, artifact: str | os.PathLike[str] | None) -> Path:
    """Where the model goes; raises ConfigError for a name or a place that it cannot have."""
    if not os.fspath(repository):
        raise ConfigError("the model repository (--triton-server) has no name; found ''; name a folder")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f"a model's name is made of letters, digits and ._-, and does not begin with a dot; found {name!r}: it is "
            "the name of --out, if no other is given"
        )
    out = Path(repository) / name
    if artifact is None:  # it will be in the current folder, under a name that the model has, too
        apart = os.path.realpath(repository) != os.path.realpath(".")
    else:  # one would replace the other, or be part of it
        model, made = (Path(os.path.realpath(path)) for path in (out, artifact))
        apart = not model.is_relative_to(made) and not made.is_relative_to(model)
    if not apart:
        raise ConfigError(
            f"the model's folder and the artifact's must lie apart; found {out} and {artifact or 'the same by default'}"
            "; choose another --triton-server or --out"
        )
    return out


def _check_model_folder(out: Path, *, force: bool, need_bytes: int) -> None:
    size = len(os.fsencode(out.name))
    if size > MAX_NAME:
        raise ConfigError(f"a model's name has {MAX_NAME} bytes at most; found {size}: shorten the name of --out")
    check_place(out, need_bytes)
    if out.exists() or out.is_symlink():
        empty = out.is_dir() and not any(out.iterdir())
        if not empty and not _is_model(out):
            raise ArtifactError(
                f"{out} exists and is no model that fvexport wrote, or holds other files too; move it away or choose "
                "another repository"
            )
        if not empty and not force:
            raise ArtifactError(f"{out} exists; replace it with --force or choose another repository")


def _is_model(folder: Path) -> bool:
    """Whether a folder is a model that fvexport wrote, and holds nothing else: whether it may be replaced."""
    version = folder / VERSION
    try:
        with open_regular(folder / CONFIG_FILE) as stream:
            made_here = stream.read(len(MARK)) == MARK.encode()
        entries = {entry.name for entry in folder.iterdir()}
        files = list(version.iterdir()) if VERSION in entries else []
    except OSError:
        return False
    own = all(_is_model_file(file.name) and (file.is_symlink() or not file.is_dir()) for file in files)
    return made_here and entries <= {CONFIG_FILE, VERSION} and own


def _is_model_file(name: str) -> bool:
    """Whether `_files` gives such a name in the version's folder."""
    return name in ("model.plan", "model.onnx") or name.startswith(f"{MODEL_FILE}.")


def _files(artifact: Artifact, platform: Platform) -> Iterator[tuple[str, Path]]:
    """Names in the version's folder, and the files that go there."""
    if platform == "plan":
        yield "model.plan", artifact.path / PLAN_FILE
        return
    yield "model.onnx", artifact.model_path
    for name in artifact.manifest.files:
        if name.startswith(f"{MODEL_FILE}."):
            yield name, artifact.path / name


def _batches(manifest: Manifest, platform: Platform, asked: int | None) -> tuple[int, int | None]:
    """`max_batch_size`, and the batch that an engine is fastest at."""
    if asked is not None and asked < 1:
        raise ConfigError(f"the largest batch must be at least 1; found {asked}")
    fixed = manifest.input.shape[0]
    low, best, high = (1, None, None)
    if platform == "plan" and manifest.engine is not None:
        low, best, high = manifest.engine.profile.batch
    if isinstance(fixed, int):
        if asked not in (None, fixed):
            raise ConfigError(f"the file takes batches of {fixed} alone; found {asked}: export it with --batch dynamic")
        return 0, None
    if low > 1:
        raise ConfigError(f"the server sends single images too, and the engine takes {low} at least; build it with "
                          f"--batch 1:{best}:{high}")  # fmt: skip
    if high is not None and asked is not None and asked > high:
        raise ConfigError(f"the engine takes {high} images at most; found {asked}: build it with another --batch")
    size = asked or high or MAX_BATCH_SIZE
    return size, best if best is not None and 1 < best <= size else None


# --- config.pbtxt -----------------------------------------------------------------------------------


def _config(model: _Model) -> str:
    manifest = model.artifact.manifest
    batching = model.max_batch_size > 0
    lines = [
        *(f"# {line}" for line in _comments(model)),
        f"name: {_quoted(model.name)}",
        f"backend: {_quoted(BACKENDS[model.platform])}",
        f"default_model_filename: {_quoted(f'model.{model.platform}')}",
        f"max_batch_size: {model.max_batch_size}",
        *_tensor("input", manifest.input, batching),
        *_tensor("output", manifest.output, batching),
        f"instance_group [{{ count: {model.server.instances} kind: {_kind(model)} }}]",
        *_batching(model),
        *_optimization(model),
    ]
    for key, value in _parameters(model).items():
        lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def _comments(model: _Model) -> list[str]:
    manifest = model.artifact.manifest
    config = manifest.preprocessor.config
    pixels = "0 to 255"
    if manifest.input.dtype != "uint8":
        mean, std = (", ".join(f"{value:.6g}" for value in each) for each in (config.mean, config.std))
        pixels = f"(level / 255 - mean) / std with mean {mean} and std {std}" if config.normalizes else "in [0, 1]"
    size = manifest.input.shape
    return [
        f"Made by fvexport {__version__}: FastViTHD ({one_line(manifest.variant)}), {manifest.precision}.",
        f"{one_line(manifest.input.name)}: RGB, {pixels}, channels first, height and width "
        + (f"{size[2]} x {size[3]}." if isinstance(size[2], int) else "multiples of 64."),
        "The parameter fvexport.preprocessing says how a photograph becomes that, in transformers' terms.",
    ]


def _tensor(kind: str, spec: TensorSpec, batching: bool) -> list[str]:
    shape = spec.shape[1:] if batching else spec.shape
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in shape)
    return [f"{kind} [{{ name: {_quoted(spec.name)} data_type: {DATA_TYPES[spec.current.dtype]} dims: [ {dims} ] }}]"]


def _kind(model: _Model) -> str:
    """Where instances run; KIND_AUTO is the GPU where there is one."""
    manifest = model.artifact.manifest
    if model.server.kind is not None:
        return f"KIND_{model.server.kind.upper()}"
    if model.platform == "plan" or manifest.float_precision == "bf16":  # onnxruntime's CPU has no BF16 convolution
        return "KIND_GPU"
    target = quant_target(manifest)
    return "KIND_AUTO" if target is None or get_backend(target).gpu else "KIND_CPU"


def _batching(model: _Model) -> list[str]:
    if model.max_batch_size <= 1:
        return []
    preferred = model.preferred_batch_size
    return [f"dynamic_batching {{ preferred_batch_size: [ {preferred} ] }}" if preferred else "dynamic_batching { }"]


def _optimization(model: _Model) -> list[str]:
    """An engine for one shape is replayed as a CUDA graph: its start then costs the CPU one call."""
    shape = model.artifact.manifest.input.shape
    static = all(isinstance(size, int) for size in shape)
    return ["optimization { cuda { graphs: true } }"] if model.platform == "plan" and static else []


def _parameters(model: _Model) -> dict[str, str]:
    manifest = model.artifact.manifest
    file = PLAN_FILE if model.platform == "plan" else MODEL_FILE
    found = {
        "fvexport.version": __version__,
        "fvexport.checkpoint": manifest.checkpoint.source,
        "fvexport.checkpoint_sha256": manifest.checkpoint.sha256,
        "fvexport.model_sha256": manifest.files[file].sha256,
        "fvexport.preprocessing": json.dumps(manifest.preprocessor.to_dict()),
    }
    if model.server.intra_op_threads is not None:
        found["intra_op_thread_count"] = str(model.server.intra_op_threads)
    if model.server.inter_op_threads is not None:
        found |= {"execution_mode": "1", "inter_op_thread_count": str(model.server.inter_op_threads)}
    if model.platform == "plan" and manifest.engine is not None:
        found["fvexport.tensorrt"] = manifest.engine.version
        found["fvexport.gpu"] = manifest.engine.gpu.name if manifest.engine.gpu else ""
    return found


def _quoted(text: str) -> str:
    escaped = one_line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
