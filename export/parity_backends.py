"""Backends as parity runs them: they return the output of every block, and store half precision as a GPU does.

A plain backend (export/runtime) does neither; each class here is a plain one with that added. Where a runtime keeps
float32 between the operators of a half-precision file, overflow and most of the precision's error stay hidden, so a
verdict asks for emulation.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.errors import ArtifactError, UnavailableError
from ..encoder.checkpoint import Checkpoint
from ..encoder.connector import Connector
from ..encoder.fastvithd import FastViTHD
from ..encoder.float32 import in_float32_now
from .artifact import AGAIN, Artifact
from .backend_table import BackendInfo, get_backend
from .runtime.backends import make_backend
from .runtime.base import Backend
from .runtime.eager_backend import EagerBackend
from .runtime.onnxruntime_backend import Edit, OnnxRuntimeBackend
from .runtime.openvino_backend import OpenVinoBackend
from .runtime.pytorch_backend import PyTorchBackend


@runtime_checkable
class TappedBackend(Backend, Protocol):
    """A backend that also returns inner tensors."""

    def run_taps(self, pixel_values: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The features (B, N, C), and the inner tensors asked for, all in float32."""
        ...


def parity_backend(
    artifact: Artifact, target: str, *, taps: Sequence[str] = (), checkpoint: Checkpoint | str | None = None,
    threads: int | None = None,
) -> Backend:  # fmt: skip
    """The backend that runs `artifact` on `target` for a comparison, emulating half precision if the target can.

    Args:
        artifact: an opened artifact.
        target: a name from the table of backends.
        taps: names of the inner tensors that `run_taps` returns; the result is a `TappedBackend` if there are any.
        checkpoint, threads: see `make_backend`.

    Raises:
        UnavailableError: no such target, it cannot run here, or it returns no inner tensors.
        ArtifactError: the runtime refuses the file, or the file has no such tensor.
    """
    row = get_backend(target)
    if taps and not row.taps:
        raise UnavailableError(f"{row.name} shows no inner tensors; compare blocks with --backend onnxruntime-cpu")
    if row.module == "torch" and row.taps:
        return ParityPyTorch(
            artifact, row.name, threads=threads, emulate_half=row.emulates_half, taps=taps, checkpoint=checkpoint
        )
    if row.module == "openvino":
        return ParityOpenVino(artifact, row.name, threads=threads, taps=taps)
    if row.taps and row.module != "torch":
        return ParityOnnxRuntime(artifact, row.name, threads=threads, emulate_half=row.emulates_half, taps=taps)
    return make_backend(artifact, row.name, threads=threads, checkpoint=checkpoint)


class ParityOnnxRuntime(OnnxRuntimeBackend):
    """onnxruntime with inner tensors, and with half precision emulated.

    Args:
        artifact, target, threads: see `OnnxRuntimeBackend`.
        emulate_half: round each stored value of a half-precision file (see `runtime.emulate_half`).
        taps: names of the inner tensors that `run_taps` returns.
    """

    def __init__(
        self, artifact: Artifact, target: str = "onnxruntime-cpu", *, threads: int | None = None,
        emulate_half: bool = False, taps: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.emulate_half, self.taps = emulate_half, tuple(taps)
        super().__init__(artifact, target, threads=threads)
        self._opened(artifact, target=target, threads=threads, emulate_half=emulate_half, taps=taps)

    def rounds(self, precision: str, row: BackendInfo) -> bool:
        return self.emulate_half or super().rounds(precision, row)

    def edits(self, artifact: Artifact, half: str | None, *, exact: bool) -> list[Edit]:
        found = super().edits(artifact, half, exact=exact)
        return [*found, partial(_with_outputs, names=self.taps, path=str(artifact.model_path))] if self.taps else found

    def run_taps(self, pixel_values: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `TappedBackend`."""
        features, *inner = self.outputs(pixel_values)
        return features, dict(zip(self.taps, inner, strict=True))


def _with_outputs(model: onnx.ModelProto, *, names: Sequence[str], path: str) -> onnx.ModelProto:
    """The graph with inner tensors added to its outputs."""
    _check_taps(names, {out for node in model.graph.node for out in node.output}, path)
    # No type is stated: onnxruntime infers it, whatever the precision of that part of the graph.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


def _check_taps(names: Sequence[str], made: set[str], path: str) -> None:
    missing = [name for name in names if name not in made]
    if missing:
        raise ArtifactError(f"{path} has no tensor {missing[0]!r} to compare; {AGAIN}")


class ParityOpenVino(OpenVinoBackend):
    """OpenVINO with inner tensors. It cannot round each stored value, so half precision is what it computes natively.

    Args:
        artifact, target, threads: see `OpenVinoBackend`.
        taps: names of the inner tensors that `run_taps` returns.
    """

    def __init__(
        self, artifact: Artifact, target: str = "openvino", *, threads: int | None = None, taps: Sequence[str] = ()
    ) -> None:
        self.taps = tuple(taps)
        super().__init__(artifact, target, threads=threads)
        self._opened(artifact, target=target, threads=threads, taps=taps)

    def edit(self, model: Any, artifact: Artifact) -> None:
        if not self.taps:
            return
        made = {name for node in model.get_ops() for output in node.outputs() for name in output.names}
        _check_taps(self.taps, made, str(artifact.model_path))
        model.add_outputs(list(self.taps))

    def run_taps(self, pixel_values: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `TappedBackend`."""
        results = self.outputs(pixel_values)
        return results[self.model.output(0)], {name: results[self.model.output(name)] for name in self.taps}


class ParityPyTorch(PyTorchBackend):
    """The eager model of an artifact with inner tensors, and with half precision emulated.

    Args:
        artifact, threads, checkpoint: see `PyTorchBackend`.
        target: `eager`.
        emulate_half: compute half precision in float32, rounding each stored value.
        taps: names of the blocks whose outputs `run_taps` returns.

    Raises UnavailableError for another target.
    """

    def __init__(
        self, artifact: Artifact, target: str = "eager", *, threads: int | None = None, emulate_half: bool = False,
        taps: Sequence[str] = (), checkpoint: Checkpoint | str | None = None,
    ) -> None:  # fmt: skip
        if target != "eager":
            raise UnavailableError(f"{target} shows no inner tensors and rounds nothing; take --backend eager")
        self.emulate_half, self.taps = emulate_half, tuple(taps)
        super().__init__(artifact, target, threads=threads, checkpoint=checkpoint)
        self._opened(
            artifact, target=target, threads=threads, emulate_half=emulate_half, taps=taps, checkpoint=checkpoint
        )

    def eager(self, encoder: FastViTHD, connector: Connector | None, dtype: torch.dtype) -> EagerBackend:
        rounds = self.emulate_half and dtype != torch.float32
        self._tapped = EagerReference(encoder, connector, emulate_half=dtype if rounds else None)
        if rounds:
            self._tapped.computes += f", each stored value in {str(dtype).removeprefix('torch.')}"
        return self._tapped

    def run_taps(self, pixel_values: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `TappedBackend`."""
        self.check_process()
        inner: dict[str, np.ndarray] = {}

        def see(name: str, y: np.ndarray) -> None:
            if name in self.taps:
                inner[name] = y

        with self._threads():
            return self._tapped.run_taps(pixel_values, see), inner


class EagerReference(EagerBackend):
    """The eager model: the reference of a comparison, or what PyTorch itself loses in a half precision.

    Args:
        encoder, connector: see `EagerBackend`; left as they are.
        emulate_half: a half type to round weights and every result to, while computing in float32: PyTorch in half
            precision as a GPU runs it, at a speed that a CPU can bear, where its own float16 convolutions take minutes.
    """

    def __init__(
        self, encoder: FastViTHD, connector: Connector | None = None, *, emulate_half: torch.dtype | None = None
    ) -> None:
        if emulate_half is not None:
            encoder = copy.deepcopy(encoder).to(emulate_half).float()
            connector = None if connector is None else copy.deepcopy(connector).to(emulate_half).float()
        super().__init__(encoder, connector)
        self.emulate_half = emulate_half
        if emulate_half is not None:
            self.computes = f"PyTorch, {encoder.form} form, {str(emulate_half).removeprefix('torch.')}"

    @contextmanager
    def mode(self) -> Iterator[None]:
        """As `EagerBackend.mode`, rounding if half precision is emulated."""
        with super().mode(), nullcontext() if self.emulate_half is None else _Stored(self.emulate_half):
            yield

    def run_taps(
        self, pixel_values: np.ndarray, see: Callable[[str, np.ndarray], None]
    ) -> np.ndarray:  # one block at a time: at 1024 x 1024 all of them together are a gigabyte
        """Like `run`; calls `see(block, output (B, C, H, W) float32)` as each block ends."""
        with _hooks(self.encoder.named_blocks(), lambda name, y: see(name, y.float().cpu().numpy())):
            return self.run(pixel_values)


class _Stored(TorchFunctionMode):
    """Rounds every floating result to a half type and back, but those inside an `InFloat32`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.half = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if in_float32_now():
            return result
        if isinstance(result, Tensor) and result.dtype == torch.float32 and func is not Tensor.float:
            with torch._C.DisableTorchFunction():
                return result.to(self.half).float()
        return result


@contextmanager
def _hooks(blocks: Iterator[tuple[str, nn.Module]], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls `see(name, output)` for each block that this thread runs; others may run the same modules meanwhile."""
    thread = threading.get_ident()

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: see(name, output) if threading.get_ident() == thread else None

    handles = [block.register_forward_hook(hook(name)) for name, block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
