"""The same build as a `trtexec` command line, for machines without fvexport."""

from __future__ import annotations

from pathlib import Path

from ...core import shell
from ..tensor_names import INPUT_NAME
from .engine_options import EngineOptions, Flavour, Profile


def command_line(
    flavour: Flavour, model: Path, plan: Path, profile: Profile, dynamic: bool, options: EngineOptions
) -> str:
    """`trtexec …` (or `tensorrt_rtx …`, its twin in TensorRT-RTX) for the same engine.

    Args:
        flavour: which TensorRT.
        model, plan: the ONNX file, and the engine to write.
        profile: input sizes.
        dynamic: whether the file has dynamic sizes.
        options: memory, compatibility.
    """
    words = ["tensorrt_rtx" if flavour == "tensorrt-rtx" else "trtexec", f"--onnx={model}", f"--saveEngine={plan}"]
    if flavour == "tensorrt":
        words += ["--stronglyTyped", "--noTF32"]
    if dynamic:
        for name, shape in zip(("min", "opt", "max"), profile.shapes(), strict=True):
            words.append(f"--{name}Shapes={INPUT_NAME}:{'x'.join(map(str, shape))}")
    if options.workspace is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace / 2**20:g}M")
    if options.opt_level is not None:
        words.append(f"--builderOptimizationLevel={options.opt_level}")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if options.hardware_compatible:
        words.append("--hardwareCompatibilityLevel=ampere+")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.strip:
        words.append("--stripWeights")
    words.append("--profilingVerbosity=detailed")
    return shell.command_line(words)
