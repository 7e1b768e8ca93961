"""Records GPU work in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")


def captured(
    run: Callable[[], T], *, stream: Any = None, pool: Any = None,
    errors: Literal["global", "thread_local"] = "thread_local", cuda: Any = torch.cuda,
) -> tuple[Any, T]:  # fmt: skip
    """A CUDA graph of what `run` launches, and what `run` returned: tensors that each replay writes.

    Args:
        run: only records; nothing is computed before the first replay.
        stream: to capture on; PyTorch's own for captures by default.
        pool: memory of another graph to share.
        errors: `thread_local` lets other threads use the GPU meanwhile, `global` refuses what could disturb a capture.
        cuda: `torch.cuda`, or a test's replacement.
    """
    graph = cuda.CUDAGraph()
    try:
        with cuda.graph(graph, stream=stream, pool=pool, capture_error_mode=errors):
            result = run()
    except BaseException:
        del graph  # the traceback would keep it
        raise
    return graph, result
