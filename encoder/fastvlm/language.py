"""The language model of a checkpoint: Qwen2's config and tensors, read one at a time into transformers' model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ...progress import Progress
from ..checkpoint.check import Findings
from ..checkpoint.tensors import TensorStore
from ..checkpoint.wording import shown, unfit
from ..qwen2 import DTYPES, hollow_qwen2, import_qwen2

MODEL_TYPES = ("qwen2", "llava_qwen2", "llava_qwen")
"""What config.json calls a Qwen2 and LLaVA's wrapping of it."""

_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "use_sliding_window", "sliding_window", "max_window_layers",
    "layer_types", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Qwen2's own entries of config.json, beside which LLaVA puts its."""

_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# The file's prefix -> transformers' for a Qwen2 alone; the first that fits counts.
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.embed_tokens.", "model.embed_tokens."),
    ("model.layers.", "model.layers."),
    ("model.norm.", "model.norm."),
    ("lm_head.", "lm_head."),
)
_HEAD = "lm_head.weight"


def own_name(name: str) -> str | None:
    """A file's tensor name -> `Qwen2ForCausalLM`'s; None for what is not the language model's."""
    for prefix, own in _PREFIXES:
        if name.startswith(prefix):
            return own + name[len(prefix) :]
    return None


def read_config(source: str, main: Mapping[str, Any], names: Collection[str]) -> Any:
    """The `Qwen2Config` that config.json speaks of.

    Args:
        source: for messages.
        main: config.json.
        names: `Qwen2ForCausalLM`'s names of the tensors that the file holds.

    Raises:
        CheckpointError: no config.json, another language model, or values that Qwen2 cannot have.
    """
    text = main.get("text_config", main)
    if not isinstance(text, Mapping) or not text:
        raise unfit(source, "has no config.json that describes a language model", "give a FastVLM folder or hub id")
    kind = text.get("model_type")
    if kind not in MODEL_TYPES:
        raise unfit(source, f"its language model is {shown(kind)!r}", "give a FastVLM checkpoint, which has Qwen2's")
    if missing := [name for name in _NEEDED if name not in text]:
        raise unfit(source, f"config.json lacks {', '.join(missing)}", "download it again")
    values = {name: text[name] for name in _FIELDS if name in text}
    tied = [holder["tie_word_embeddings"] for holder in (main, text) if "tie_word_embeddings" in holder]
    # transformers' form says it at the top, in the text's own part, or in both; a file without a head says it too.
    values["tie_word_embeddings"] = any(tied) if tied else _HEAD not in names
    qwen2 = import_qwen2()
    try:
        return qwen2.Config.from_dict(values)
    except Exception as error:  # a validator's own kinds, which differ between releases
        raise unfit(source, f"config.json describes no Qwen2 ({shown(error)})", "download it again") from None


def stored_dtype(main: Mapping[str, Any]) -> torch.dtype:
    """What config.json says the weights are kept in; float32 where it says nothing."""
    for holder in (main.get("text_config"), main):
        for key in ("dtype", "torch_dtype"):
            name = holder.get(key) if isinstance(holder, Mapping) else None
            if name in DTYPES:
                return DTYPES[name]
    return torch.float32


def load_language_model(
    source: str, store: TensorStore, main: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device,
    progress: Progress,
) -> Any:  # fmt: skip
    """The checkpoint's `Qwen2ForCausalLM`; every tensor goes from the file to its place, and one is held beside it.

    Raises:
        CheckpointError: see `read_config`; missing, surplus or unfit tensors, all in one error.
    """
    names = {own: name for name in store.names if (own := own_name(name)) is not None}
    config = read_config(source, main, names)
    model = hollow_qwen2(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}  # tied ones once
    if _HEAD not in expected:
        names.pop(_HEAD, None)  # kept beside embeddings that it is tied to, as some files have it
    findings = Findings()
    prefix = next((name[: len(name) - len(own)] for own, name in names.items() if name.endswith(own)), "")
    findings.compare(expected, store.describe(names.values()), names, lambda own: prefix + own)
    seems = f"a Qwen2 of {config.num_hidden_layers} layers, {config.hidden_size} wide, by its config.json"
    if error := findings.error(source, seems):
        raise error
    files = {name: own for own, name in names.items()}
    weights = {}
    for done, (name, tensor) in enumerate(store.read(files, dtype), start=1):
        findings.examine(name, tensor)
        weights[files[name]] = tensor.to(device)
        progress("reading the language model", done, len(files))
    if error := findings.error(source, seems):
        raise error
    model.load_state_dict(weights, strict=False, assign=True)  # not strict: a tied head has no weights of its own
    model.tie_weights()
    return model.to(device).requires_grad_(False)
