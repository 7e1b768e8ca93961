"""`load_fastvlm`: a released FastVLM checkpoint, in LLaVA or transformers form."""

from __future__ import annotations

import os

import torch

from ...progress import Progress, silent
from .model import FastVLM


def load_fastvlm(
    source: str | os.PathLike[str], *, revision: str | None = None, dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu", tokenizer: str | os.PathLike[str] | bool = True, progress: Progress = silent,
) -> FastVLM:  # fmt: skip
    """Loads encoder, connector, Qwen2 and tokenizer; no second copy of the language model is held.

    Args:
        source: a folder, a file in one, or a hub id such as `apple/FastVLM-0.5B`.
        revision: branch, tag or commit of a hub id.
        dtype: `float32`, `bfloat16` or `float16`, of the language model; by default float32 on a CPU and the
            checkpoint's own elsewhere. Encoder and connector are bfloat16 with it, else float32: in float16 they overflow.
        device: where it runs.
        tokenizer: True for the one beside the weights, a folder or hub id for another's, False for none: prompts are
            token ids then.
        progress: told of downloads in bytes and of reading in tensors.

    Raises:
        UnavailableError: transformers is not installed.
        CheckpointError: not a FastVLM, without connector, without tokenizer, or with unfit tensors.
    """
    raise NotImplementedError
