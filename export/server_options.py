"""How Triton Inference Server runs a model. Imports nothing heavy: the command line reads its choices from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..core.errors import ConfigError
from ..core.threads import MAX_THREADS

Platform = Literal["onnx", "plan"]
"""What is served: the ONNX file by onnxruntime, or the engine by TensorRT."""
InstanceKind = Literal["auto", "cpu", "gpu"]
INSTANCE_KINDS: tuple[InstanceKind, ...] = get_args(InstanceKind)
MAX_INSTANCES = 1024


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The instances of a model in Triton Inference Server.

    Attributes:
        kind: where they run; None for where the file runs best. `auto` is the GPU if the server has one.
        instances: how many, on each GPU or in all on the CPU.
        intra_op_threads: threads that onnxruntime gives one operator; None for as many as there are cores.
        inter_op_threads: operators that onnxruntime runs side by side; None for one after another.
    """

    kind: InstanceKind | None = None
    instances: int = 1
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, *INSTANCE_KINDS):
            raise ConfigError(f"instances are of the kind {', '.join(INSTANCE_KINDS)}; found {self.kind!r}")
        if not 1 <= self.instances <= MAX_INSTANCES:
            raise ConfigError(f"a model has 1 to {MAX_INSTANCES} instances; found {self.instances}")
        for threads in (self.intra_op_threads, self.inter_op_threads):
            if threads is not None and not 1 <= threads <= MAX_THREADS:
                raise ConfigError(f"an instance has 1 to {MAX_THREADS} threads; found {threads}")

    def check(self, platform: Platform, precision: str) -> None:
        """Raises ConfigError for instances that the server's backend cannot make of such a file.

        Args:
            platform: what is served.
            precision: of everything in the file that is not quantized.
        """
        threads = self.intra_op_threads is not None or self.inter_op_threads is not None
        if platform == "plan" and self.kind == "cpu":
            raise ConfigError("an engine of TensorRT runs on a GPU; leave out the kind, or serve the ONNX file")
        if threads and (platform == "plan" or self.kind == "gpu"):
            raise ConfigError("threads are for instances on a CPU; leave their number out, or serve the ONNX file")
        if precision == "bf16" and self.kind == "cpu":
            raise ConfigError("onnxruntime's CPU has no BF16 convolution; serve a BF16 file on a GPU, or export --fp32")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The file that a model repository will get, as far as it is known before the export.

    Attributes:
        precision: of the artifact.
        platform: what will be served.
        flavour, strip: of the engine's build, if one will be served.
        size: its bytes, about.
    """

    precision: str
    platform: Platform = "onnx"
    flavour: str = "tensorrt"
    strip: bool = False
    size: int = 0
