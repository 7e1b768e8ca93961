"""The plain ways that a user would take without fvexport, on the same weights: rows beside ours in a sweep.

Each is what the tools' own documentation shows, with their defaults. The graph comes from the same checkpoint, through
`torch.onnx.export` of the released form (branches merged, as timm and Apple do it).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import UnavailableError
from ...export.backend_table import get_backend, why_absent
from ...export.precision import Precision

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...encoder.checkpoint import Checkpoint
    from .tool_files import Made

ONNX = "torch-onnx"
QUANTIZED = "quantize-static"


@dataclass(frozen=True)
class Peer:
    """One plain way.

    Attributes:
        name: as a row of a sweep.
        precisions: that it has.
        target: the row of the table of backends that says whether it can run here.
        file: the tool that makes its file: `torch-onnx`, `quantize-static`, or none.
        settings: in words, for a report.
    """

    name: str
    precisions: tuple[Precision, ...]
    target: str
    file: str | None
    settings: str


PEERS: tuple[Peer, ...] = (
    Peer("plain-onnxruntime", ("fp32",), "onnxruntime-cpu", ONNX, "torch.onnx.export, then onnxruntime"),
    Peer(
        "plain-openvino", ("fp32", "bf16"), "openvino", ONNX,
        "torch.onnx.export, then openvino; bf16 is what it chooses by itself where the processor has it",
    ),
    Peer(
        "plain-quantize-static", ("int8",), "onnxruntime-cpu", QUANTIZED,
        "torch.onnx.export, then onnxruntime's quantize_static with its defaults",
    ),
    Peer(
        "plain-torch-compile", ("fp32", "fp16", "bf16"), "torch-compile", None,
        'torch.compile of the train form; on a GPU with mode="reduce-overhead" and without TF32 in fp32',
    ),
)  # fmt: skip


def get_peer(name: str) -> Peer:
    """The row of that name."""
    return next(peer for peer in PEERS if peer.name == name)


def why_peer_absent(peer: Peer, precision: str, height: int, width: int, batch: int) -> str | None:
    """None where `peer` can be measured here, else the reason in a few words."""
    reason = why_absent(get_backend(peer.target))
    if reason is not None:
        return reason
    if peer.file is not None and importlib.util.find_spec("onnxscript") is None:
        return "onnxscript is not installed"
    if peer.file == QUANTIZED and (height != width or batch != 1):
        return "it calibrates on square pictures, one at a time"
    if peer.target == "torch-compile" and precision == "fp16":
        import torch

        return None if torch.cuda.is_available() else "PyTorch takes minutes for float16 convolutions on a CPU"
    if peer.target == "openvino" and precision == "bf16":
        from ...export.backend_table import has_bf16

        return None if has_bf16() else "this processor has no BF16"
    return None


def make_peer_file(
    peer: Peer, checkpoint: Checkpoint, folder: Path, height: int, width: int, batch: int, samples: int
) -> list[Made]:
    """The files that `peer` needs, the one it runs last; those that stand in `folder` are taken as they are.

    Raises whatever the tool trips over.
    """
    from ...encoder.image import HELD_OUT, sample_images
    from . import quantize_static
    from .photos import Photographs
    from .tool_files import Job, Tool, make, release

    # What our own calibration takes if no pictures are named: none of those that parity looks at.
    names = [name for name in sample_images() if name not in HELD_OUT]
    photographs = Photographs.write(folder / "calibration.txt", samples, height, names)
    tool = Tool(f"torch.onnx.export, defaults, batch {batch}", functools.partial(_export, (batch, 3, height, width)))
    plain = folder / ONNX
    job = Job(photographs, lambda: checkpoint, plain / "model.onnx")
    made = [make(tool, job, plain)]
    if peer.file == QUANTIZED:
        made.append(make(quantize_static.DEFAULT, job, folder / f"{QUANTIZED}-{samples}"))
    release()
    return made


@dataclass(frozen=True)
class LoadedPeer:
    """A peer that is ready.

    Attributes:
        run: `pixel_values` (B, 3, H, W) -> features (B, N, C) float32.
        computes: how, in words.
        device: `cpu` or `cuda`.
        run_tensor: the same from tensor to tensor on that device, in the peer's dtype; None if it takes only arrays.
    """

    run: Callable[[np.ndarray], np.ndarray]
    computes: str
    device: str = "cpu"
    run_tensor: Callable[[Tensor], Tensor] | None = None


def load_peer(
    peer: Peer, precision: str, file: Path | None, checkpoint: Callable[[], Checkpoint], threads: int
) -> LoadedPeer:
    """Loads what `peer` runs. Raises whatever the tool trips over."""
    from .runners import load

    if peer.target == "torch-compile":
        return _compiled(checkpoint().encoder, precision)
    assert file is not None
    if peer.target == "openvino":
        words = {"fp32": "float32, asked for", "bf16": "bfloat16, OpenVINO's own choice"}[precision]
        return LoadedPeer(load(file, "openvino", threads, "bf16" if precision == "bf16" else "f32"), words)
    return LoadedPeer(load(file, "onnxruntime", threads), "natively")


def _export(shape: tuple[int, int, int, int], job: Any, folder: Path) -> Path:
    from .plain_export import export_plain

    path = folder / "model.onnx"
    export_plain(job.checkpoint().encoder, shape, path)
    return path


def _compiled(encoder: Any, precision: str) -> LoadedPeer:
    """torch.compile of the train form as it is loaded, on the GPU where there is one."""
    import torch

    from ...core.dtypes import torch_dtype
    from ...encoder.exact import exact_float32

    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch_dtype(precision)
    on_gpu = device.type == "cuda"
    mode = "reduce-overhead" if on_gpu else None
    model = torch.compile(encoder.to(device, dtype), mode=mode)

    def run_tensor(pixel_values: Tensor) -> Tensor:
        """The result is overwritten by the next call."""
        with torch.inference_mode(), exact_float32():
            try:
                y: Tensor = model(pixel_values.to(device, dtype))  # type: ignore[no-untyped-call]
            except torch._dynamo.exc.BackendCompilerFailed as error:
                raise UnavailableError(f"torch.compile fails here: {error}") from error
        return y

    def run(pixel_values: np.ndarray) -> np.ndarray:
        features: np.ndarray = run_tensor(torch.from_numpy(pixel_values)).float().cpu().numpy()
        return features

    words = f"PyTorch, torch.compile, train form, {precision}" + (f", {mode}" if mode else "")
    return LoadedPeer(run, words, device.type, run_tensor if on_gpu else None)
