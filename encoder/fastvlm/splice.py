"""Token ids and visual tokens -> the embeddings that the language model reads.

Source: LLaVA's `prepare_inputs_labels_for_multimodal`: each mark is replaced by its image's tokens. transformers'
`FastVlmModel.forward` scatters the same tokens over placeholders, which gives the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import PromptError
from .prompt import IMAGE_TOKEN_INDEX


def length(ids: Sequence[int], counts: Sequence[int]) -> int:
    """Positions of the spliced prompt; raises PromptError where marks and images differ in number."""
    marks = sum(token == IMAGE_TOKEN_INDEX for token in ids)
    if marks != len(counts):
        raise PromptError(f"the prompt has {marks} marks for images and {len(counts)} images came with it")
    return len(ids) - marks + sum(counts)


def splice(language_model: Any, ids: Sequence[int], images: Sequence[Tensor]) -> Tensor:
    """(1, L, d) in the language model's dtype, on its device.

    Args:
        language_model: a `Qwen2ForCausalLM`.
        ids: token ids with `IMAGE_TOKEN_INDEX` once for each image.
        images: (n, d) of each image, in order.

    Raises:
        PromptError: another number of marks than images, or a token id that the model has no embedding for.
    """
    length(ids, [len(image) for image in images])
    table = language_model.get_input_embeddings()
    rows = table.weight.shape[0]
    for token in ids:
        if token != IMAGE_TOKEN_INDEX and not 0 <= token < rows:
            raise PromptError(f"the prompt has the token {token}, and the model embeddings for 0 to {rows - 1}")
    device, dtype = table.weight.device, table.weight.dtype
    marks = [index for index, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX]
    starts, ends = [0, *(index + 1 for index in marks)], [*marks, len(ids)]
    runs = [list(ids[start:end]) for start, end in zip(starts, ends, strict=True)]
    flat = torch.tensor([token for run in runs for token in run], dtype=torch.long, device=device)
    text = torch.split(table(flat), [len(run) for run in runs])
    parts = [text[0]]
    for image, run in zip(images, text[1:], strict=True):
        parts += [image.to(device, dtype), run]
    return torch.cat(parts)[None]
