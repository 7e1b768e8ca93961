"""The attention kernel as a TensorRT plugin, `fvexport::Attention`, compiled into the engine (experimental).

    out[b, i, h] = sum_j softmax_j(q[b, i, h] . k[b, j, h]) v[b, j, h]        qkv (B, N, 3C) -> (B, N, C)

A quickly deployable plugin with an ahead-of-time implementation (TensorRT 10.9 and later): while an engine is built,
TensorRT asks for the kernel's PTX, its launch parameters as expressions of the sizes, and its integer arguments. The
engine then holds the kernel and runs without Python. Nothing of it has run on a GPU yet.

The plugin has no attributes: the number of heads follows from C, head_dim being 32. TensorRT passes the inputs, the
integers and the outputs, in that order, which is the order of `attention_kernel`; Triton's two pointers to scratch
memory, which this kernel does not use, are struck from its PTX.

Annotations are objects here, not strings: TensorRT reads them.
"""

# No `from __future__ import annotations`.

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.errors import UnavailableError
from .aot import PLAIN_SHARED, compile_launch
from .attention import HEAD_DIM, launch_attention
from .launches import recording
from .table import arch_of, default_config, dtype_class

PLUGIN = "fvexport::Attention"
ARGUMENTS = 4
"""qkv, tokens, heads, result."""
WARP = 32

_chosen: dict[str, str | None] = {}
"""`arch` of the last registration; empty before the first."""


@dataclass(frozen=True)
class PluginKernel:
    """What TensorRT is given.

    Attributes:
        name: the entry of the PTX.
        ptx: takes ARGUMENTS arguments.
        queries: that one program computes: the grid is (ceil(N / queries), heads, B).
        threads: of a program.
        shared: bytes of shared memory, at most what a block gets without asking.
    """

    name: str
    ptx: str
    queries: int
    threads: int
    shared: int


def attention_ptx(dtype: torch.dtype, arch: str, *, tokens: int, heads: int, batch: int = 1) -> PluginKernel:
    """Compiles the attention kernel for `arch` (`sm_90`) with the configuration for such sizes; any sizes may run.

    The configuration may take more shared memory than a plugin gets: then with fewer stages, until it fits.

    Raises UnavailableError where Triton is missing, or the kernel cannot run as a plugin.
    """
    sizes = {"tokens": tokens, "batch": batch, "heads": heads}
    config = default_config("attention", arch, dtype_class(dtype), sizes)
    # Compiled from sizes that are neither 1 nor multiples of 16, so that nothing is assumed of those to come.
    qkv = torch.empty(1, 17, 3 * 3 * HEAD_DIM, dtype=dtype, device="meta")
    for stages in range(config.num_stages, 0, -1):
        with recording() as made:
            launch_attention(qkv, 3, replace(config, num_stages=stages))
        compiled = compile_launch(made[0], arch)
        if not compiled.raised:
            break
    if compiled.raised or compiled.scratch:
        raise UnavailableError(
            f"the attention kernel asks for {compiled.shared} bytes of shared memory, {compiled.scratch} of scratch; "
            f"a plugin gets {PLAIN_SHARED} KiB and none: choose other blocks in configs/attention.json"
        )
    return PluginKernel(
        compiled.kernel, without_scratch(compiled.ptx), config.blocks["BLOCK_M"], WARP * config.num_warps,
        compiled.shared,
    )  # fmt: skip


def without_scratch(ptx: str) -> str:
    """The same PTX whose entry takes ARGUMENTS arguments: those after them are Triton's, and unused.

    Raises UnavailableError where the kernel does use one.
    """
    entry = re.search(r"(\.visible \.entry \w+\()(.*?)\n\)", ptx, re.S)
    assert entry is not None
    parameters = [line.strip().rstrip(",") for line in entry[2].strip().splitlines()]
    body = ptx[entry.end() :]
    for parameter in parameters[ARGUMENTS:]:
        if re.search(rf"\b{parameter.split()[-1]}\b", body):
            raise UnavailableError("the attention kernel uses Triton's scratch memory, which a plugin does not get")
    kept = ",\n\t".join(parameters[:ARGUMENTS])
    return f"{ptx[: entry.start()]}{entry[1]}\n\t{kept}\n){body}"


def register_attention(arch: str | None = None) -> None:
    """Makes TensorRT's parser and builder know `fvexport::Attention`, in this process. Calling it again is harmless.

    Args:
        arch: of the GPU that engines are built for, such as `sm_90`; None asks PyTorch's current GPU at build time.

    Raises:
        UnavailableError: no TensorRT of 10.9 or later, no Triton, or no GPU and no `arch`.
    """
    try:
        import tensorrt as trt
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise UnavailableError(
            f"--attention-plugin needs TensorRT 10.9 or later ({error}); `pip install tensorrt`"
        ) from None
    if not hasattr(trtp, "aot_impl"):
        raise UnavailableError(f"--attention-plugin needs TensorRT 10.9 or later; found {trt.__version__}")
    _check_arch(arch)
    known = bool(_chosen)
    _chosen["arch"] = arch
    if not known:
        _register(trt, trtp)


def _check_arch(arch: str | None) -> str:
    if arch is not None and re.fullmatch(r"sm_\d+", arch):
        return arch
    if arch is not None:
        raise UnavailableError(f"unknown architecture {arch!r}; it is named like sm_90")
    if not torch.cuda.is_available():
        raise UnavailableError("PyTorch sees no GPU to compile the attention plugin for; name one, such as sm_90")
    return arch_of(torch.device("cuda", torch.cuda.current_device()))


def _register(trt: Any, trtp: Any) -> None:
    dtypes = {trt.float16: torch.float16, trt.bfloat16: torch.bfloat16, trt.float32: torch.float32}

    @trtp.register(PLUGIN)  # type: ignore[untyped-decorator]
    def describe(qkv: trtp.TensorDesc) -> trtp.TensorDesc:
        out = qkv.like()
        out.shape_expr[2] = qkv.shape_expr[2] // 3
        return out

    @trtp.aot_impl(PLUGIN)  # type: ignore[untyped-decorator]
    def implement(
        qkv: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        if qkv.dtype not in dtypes:
            raise UnavailableError(f"the attention plugin takes float16, bfloat16 or float32; found {qkv.dtype}")
        batch, tokens, width = qkv.shape.opt if qkv.shape.is_dynamic else tuple(qkv.shape)
        heads = width // (3 * HEAD_DIM)
        kernel = attention_ptx(dtypes[qkv.dtype], _check_arch(_chosen["arch"]), tokens=tokens, heads=heads, batch=batch)
        sizes = qkv.shape_expr
        launch = trtp.KernelLaunchParams()
        launch.grid_x = trtp.cdiv(sizes[1], kernel.queries)
        launch.grid_y = sizes[2] // (3 * HEAD_DIM)
        launch.grid_z = sizes[0]
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared
        arguments = trtp.SymIntExprs(2)
        arguments[0] = trtp.SymInt32(sizes[1])
        arguments[1] = trtp.SymInt32(sizes[2] // (3 * HEAD_DIM))
        return kernel.name, kernel.ptx, launch, arguments
