"""The language model of a checkpoint: Qwen2's config and tensors, read one at a time into transformers' model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from msgspec import UnsetType

from ...core.dtypes import DTYPES, torch_dtype
from ...core.progress import Progress
from ...core.records import RecordError, parse, plain
from ..checkpoint.check import Findings
from ..checkpoint.converted import check_names
from ..checkpoint.messages import shown, unfit
from ..checkpoint.tensors import FLOATS, TensorInfo, TensorStore
from ..qwen2 import hollow_qwen2, import_qwen2
from .records import LanguageEntries, LlavaEntries

MODEL_TYPES = ("qwen2", "llava_qwen2", "llava_qwen")
"""What config.json calls a Qwen2 and LLaVA's wrapping of it."""

OWN_CONFIG = "use the config.json that belongs to these weights"

_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# Ways of naming a Qwen2 within a FastVLM: the file's prefix -> `Qwen2ForCausalLM`'s.
_NAMINGS = (
    {"model.language_model.": "model.", "lm_head.": "lm_head."},  # transformers' fast_vlm
    {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},  # the same before transformers 4.52
    {
        part: part
        for part in (
            "model.embed_tokens.",
            "model.layers.",
            "model.norm.",
            "model.rotary_emb.",
            "lm_head.",
            "model.lm_head.",  # a name of no form: surplus, not left out without a word
        )
    },  # LLaVA
)
_HEAD, _EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
_FREQUENCIES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def own_name(name: str) -> str | None:
    """A file's tensor name -> `Qwen2ForCausalLM`'s; None for what is not the language model's."""
    for naming in _NAMINGS:
        for prefix, own in naming.items():
            if name.startswith(prefix):
                return own + name[len(prefix) :]
    return None


def _file_name(own: str, names: Collection[str]) -> str:
    """The name that a tensor of `Qwen2ForCausalLM` has in a file of these names, as most of them are named."""
    naming = max(_NAMINGS, key=lambda naming: sum(name.startswith(tuple(naming)) for name in names))
    return next(prefix + own[len(start) :] for prefix, start in naming.items() if own.startswith(start))


def read_config(source: str, main: Mapping[str, Any], store: TensorStore) -> Any:
    """The `Qwen2Config` that config.json speaks of.

    Args:
        source: for messages.
        main: config.json.
        store: tells whether there is a `lm_head.weight`, which decides about tying if config.json does not.

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
        raise unfit(source, f"config.json lacks {', '.join(missing)}", OWN_CONFIG)
    with _described(source):
        entries = parse(text, LanguageEntries)
        # transformers' form says it at the top, in the text's own part, or in both; a file without a head says it too.
        tied = [entries.tie_word_embeddings, parse(main, LlavaEntries).tie_word_embeddings]
        told = [tie for tie in tied if not isinstance(tie, UnsetType)]
        tie = any(told) if told else not any(own_name(name) == _HEAD for name in store.names)
        return _config({**plain(entries), "tie_word_embeddings": tie})


def _config(values: Mapping[str, Any]) -> Any:
    return import_qwen2().Config.from_dict(dict(values))


@contextmanager
def _described(source: str) -> Iterator[None]:
    """Turns what checks and constructors raise for config.json's values into CheckpointError."""
    try:
        yield
    except RecordError as error:
        raise unfit(source, f"config.json describes no Qwen2 ({error})", OWN_CONFIG) from None
    except Exception as error:  # transformers' own kinds, which differ between releases
        raise unfit(source, f"config.json describes no Qwen2 ({shown(error)})", OWN_CONFIG) from None


def stored_dtype(main: Mapping[str, Any]) -> torch.dtype:
    """What config.json says the weights are kept in; float32 where it says nothing."""
    for holder in (main.get("text_config"), main):
        for key in ("dtype", "torch_dtype"):
            name = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(name, str) and name in DTYPES.values():
                return torch_dtype(name)
    return torch.float32


def load_language_model(
    source: str, store: TensorStore, config: Any, *, dtype: torch.dtype, device: torch.device, progress: Progress
) -> tuple[Any, str | None]:  # fmt: skip
    """The checkpoint's `Qwen2ForCausalLM`; every tensor goes from the file to its place, and one is held beside it.

    Returns it and what a person has to know of it, if anything.

    Raises:
        CheckpointError: adapter layers, quantized weights; a config.json (`config`, see `read_config`) that contradicts
            the tensors; missing, surplus or unfit tensors, all in one error.
    """
    names = {own: name for name in store.names if (own := own_name(name)) is not None}
    check_names(source, [store.original(name) for name in names.values()], "its language model")
    described = store.describe(names.values())
    notice = None
    if config.tie_word_embeddings and _HEAD in names:
        if _same(store, described, names.get(_EMBEDDINGS), names[_HEAD]):
            del names[_HEAD]
        else:
            config.tie_word_embeddings = False
            notice = (
                f"config.json says tie_word_embeddings, but {store.original(names[_HEAD])} differs from the "
                "embeddings: the stored head is used, as transformers does."
            )
    with _described(source):
        model = hollow_qwen2(config)
    frequencies = [name for name in names if _FREQUENCIES.fullmatch(name)]
    _check_frequencies(source, store, model, [names.pop(name) for name in frequencies])
    findings = Findings(store.original)
    findings.compare(_expected(model), described, names, lambda own: _file_name(own, store.names))
    seems = f"a Qwen2 of {config.num_hidden_layers} layers, {config.hidden_size} wide, by its config.json"
    if error := findings.error(source, seems):
        _check_config(source, config, {own: described[n].shape for own, n in names.items() if n in described})
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
    return model.to(device).requires_grad_(False), notice


def _expected(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}  # tied ones once


def _same(store: TensorStore, described: Mapping[str, TensorInfo], embeddings: str | None, head: str) -> bool:
    """Whether a stored head is the embeddings; False for what is not both there and of floating point."""
    infos = [described.get(name) for name in (embeddings, head) if name is not None]
    sound = len(infos) == 2 and all(info is not None and info.dtype in FLOATS for info in infos)
    return sound and embeddings is not None and store.equal(embeddings, head)


def _check_frequencies(source: str, store: TensorStore, model: Any, names: Collection[str]) -> None:
    """Raises CheckpointError for stored rotary frequencies (transformers before 4.32) that config.json contradicts."""
    own = model.model.rotary_emb.inv_freq
    fitting = [name for name, info in store.describe(names).items() if info.shape == tuple(own.shape)]
    close = {
        # As accurate as the dtype that they were saved in.
        name
        for name, tensor in store.read(fitting)
        if torch.allclose(tensor, own, rtol=1e-2, atol=0)
    }
    for name in names:
        if name not in close:
            problem = f"config.json has other rotary frequencies (rope_theta) than {shown(store.original(name))}"
            raise unfit(source, problem, OWN_CONFIG)


def _check_config(source: str, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError naming what config.json says otherwise, if the tensors are all of one other Qwen2."""
    layers = {int(match[1]) for name in shapes if (match := re.match(r"model\.layers\.(\d{1,4})\.", name))}
    rows, width = _two(shapes.get(_EMBEDDINGS))
    own = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": _two(shapes.get("model.layers.0.mlp.gate_proj.weight"))[0],
        "num_hidden_layers": max(layers) + 1 if layers else 0,
    }
    wrong = {name: value for name, value in own.items() if value and value != getattr(config, name)}
    if not wrong:
        return
    changed = {**config.to_dict(), **wrong}
    if "num_hidden_layers" in wrong:
        changed.pop("layer_types", None)  # one for each layer
    try:
        parse(changed, LanguageEntries)
        fits = _expected(hollow_qwen2(_config(changed))) == dict(shapes)
    except Exception:  # sizes that no Qwen2 can have: the tensors are told as they are
        return
    if fits:
        told = ", ".join(f"{name} {getattr(config, name)} ({value} in the tensors)" for name, value in wrong.items())
        raise unfit(source, f"config.json contradicts the tensors: {told}", OWN_CONFIG)


def _two(shape: tuple[int, ...] | None) -> tuple[int, int]:
    return (shape[0], shape[1]) if shape is not None and len(shape) == 2 else (0, 0)
