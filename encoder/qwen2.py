"""Qwen2, the language model of FastVLM, through transformers: made without values, and its first pass over a prompt.

transformers is an extra (`pip install "fvexport[vlm]"`) and imported on first use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import UnavailableError

INSTALL = 'pip install "fvexport[vlm]"'


class Qwen2(NamedTuple):
    """transformers' own classes."""

    Config: Any
    ForCausalLM: Any


def import_qwen2() -> Qwen2:
    """The classes; raises UnavailableError where transformers is missing or older than 5."""
    try:
        import transformers
    except ImportError:
        raise UnavailableError(f"the language model needs transformers, which is not installed; `{INSTALL}`") from None
    if int(transformers.__version__.split(".")[0]) < 5:
        raise UnavailableError(
            f"the language model needs transformers 5 or later; found {transformers.__version__}; `{INSTALL}`"
        )
    return Qwen2(transformers.Qwen2Config, transformers.Qwen2ForCausalLM)


def hollow_qwen2(config: Any) -> Any:
    """A `Qwen2ForCausalLM` whose weights stand on the meta device, for `load_state_dict(…, assign=True)`.

    Only the rotary frequencies, which no checkpoint holds, have values.
    """
    with torch.device("meta"):
        model = import_qwen2().ForCausalLM(config)
    with torch.device("cpu"):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def prefill(language_model: Any, embeddings: Tensor) -> tuple[Tensor, Any]:
    """The prompt's pass through the language model.

    Args:
        language_model: a `Qwen2ForCausalLM`.
        embeddings: (B, L, d), text and visual tokens.

    Returns:
        The last position's logits (B, vocabulary), and the cache for what follows.
    """
    out = language_model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1], out.past_key_values
