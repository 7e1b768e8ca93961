"""Files that another tool converted or adapted, and what to give instead; for error messages only.

peft's adapters, MLX's layout, and quantized weights of MLX, GPTQ, AWQ, bitsandbytes, compressed-tensors and others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from .messages import shown, unfit

MERGE = "merge it into its base model first (peft: `model.merge_and_unload().save_pretrained(…)`), and give that"
ORIGINAL = "give the checkpoint that it was converted from, such as apple/FastVLM-0.5B"

_ADAPTER = re.compile(
    r"(?:^|\.)(?:lora_(?:A|B|embedding_[AB]|magnitude_vector|up|down)|ia3_l|hada_w\d_\w|lokr_w\d\w*|(?:b?oft)_\w+"
    r"|vera_lambda_\w+|base_layer|modules_to_save|original_module|prompt_embeddings)(?:\.|$)"
)
# Quantizers, by the tensors that they put beside or in place of a weight.
_QUANTIZERS = (
    ("GPTQ or AWQ", re.compile(r"\.(?:qweight|qzeros)$")),
    ("bitsandbytes", re.compile(r"\.(?:weight\.(?:absmax|quant_map|nested_\w+|quant_state\..+)|SCB|weight_format)$")),
    ("compressed-tensors or in FP8", re.compile(r"\.(?:weight_(?:packed|scale|scale_inv|zero_point)|input_scale)$")),
    ("quanto", re.compile(r"\.weight\._(?:data|scale)$")),
    ("HQQ", re.compile(r"\.W_q$")),
    ("PyTorch", re.compile(r"\._packed_params(?:\.|$)")),
)
ADAPTER_FILES = re.compile(
    r"adapter_(?:model\.(?:safetensors|bin|pth?)|config\.json)|non_lora_trainables\.(?:bin|pth?)"
)


def check_names(source: str, names: Collection[str], what: str) -> None:
    """Raises CheckpointError for names of adapter layers or quantized weights.

    Args:
        source: for the message.
        names: of the tensors to be read.
        what: whose they are: `its image encoder`.
    """
    for name in names:
        if _ADAPTER.search(name):
            problem = f"{what} has LoRA or other adapter layers that were not merged, such as {shown(name)}"
            raise unfit(source, problem, MERGE)
    if found := _quantizer(names):
        tool, name = found
        problem = f"{what} is quantized by {tool}, with tensors such as {shown(name)}"
        raise unfit(source, problem, f"{ORIGINAL}, in float32, float16 or bfloat16")


def _quantizer(names: Collection[str]) -> tuple[str, str] | None:
    """The tool that quantized weights of these names, and a name that tells so."""
    for name in names:
        for tool, pattern in _QUANTIZERS:
            if pattern.search(name):
                return tool, name
    known = set(names)
    mlx = (n for n in names if n.endswith(".scales") and f"{n.removesuffix('scales')}biases" in known)
    if (first := next(mlx, None)) is not None:
        return "MLX", first
    return None


def check_layout(source: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises CheckpointError for convolutions that are not in PyTorch's layout (O, I, H, W).

    FastViTHD's kernels are square, so the two equal sides show where the kernel is.
    """
    four = [(name, shape) for name, shape in shapes.items() if len(shape) == 4]

    def like(first: int, second: int, rest: Iterable[int]) -> list[str]:
        """The tensors whose kernel can be on these two axes alone."""
        return [n for n, s in four if s[first] == s[second] and all(s[axis] != s[first] for axis in rest)]

    torch_own = like(2, 3, (1,))
    for tool, layout, found in (
        ("MLX", "(O, H, W, I)", like(1, 2, (3,))),
        ("TensorFlow or JAX", "(H, W, I, O)", like(0, 1, (2, 3))),
    ):
        if len(found) > 2 * len(torch_own):
            name = found[0]
            raise unfit(
                source,
                f"its convolutions are in the layout of {tool}, {layout}, not PyTorch's (O, I, H, W): {len(found)} of "
                f"{len(four)}, such as {shown(name)} {tuple(shapes[name])}",
                ORIGINAL,
            )


def refuse_adapter(source: str, names: Iterable[str], read: Callable[[str], Mapping[str, Any]] | None = None) -> None:
    """Raises CheckpointError for a folder whose only weights are an adapter's.

    Args:
        source: for the message.
        names: the folder's file names.
        read: opens its JSON files, for the name of the base model.
    """
    found = sorted(name for name in names if ADAPTER_FILES.fullmatch(name))
    weights = [name for name in found if not name.endswith(".json")]
    if not weights:
        return
    described = read("adapter_config.json") if read and weights != found else {}
    base = described.get("base_model_name_or_path")
    into = f" into {shown(base)}" if isinstance(base, str) else " into its base model"
    raise unfit(
        source,
        f"is a LoRA or other adapter ({', '.join(weights)}), not a whole model",
        MERGE.replace(" into its base model", into),
    )
