"""`load_fastvlm`: a released FastVLM checkpoint, in LLaVA or transformers form."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.dtypes import DTYPES, torch_dtype
from ...core.errors import ConfigError
from ...core.progress import Progress, silent
from ...core.records import RecordError, parse
from ...core.temporary import check_temporary_folder
from ..checkpoint.load import CheckpointInfo, load_located
from ..checkpoint.messages import unfit
from ..checkpoint.source import locate
from ..checkpoint.tensors import FLOATS, TensorStore
from ..checkpoint.weights_files import Located
from ..qwen2 import import_qwen2
from .language import OWN_CONFIG, load_language_model, own_name, read_config, stored_dtype
from .model import FastVLM
from .prompt import MARK
from .records import MAX_CONTEXT, LlavaEntries
from .tiles import Tiling
from .tokenizer import check_fits, load_tokenizer, read_generation, stop_ids, tokenizer_from
from .vision import EagerTower

RESOLUTION = 1024
"""Of the released checkpoints; taken where nothing beside the weights tells another."""
NEWLINES = ("model.image_newline", "image_newline")


def load_fastvlm(
    source: str | os.PathLike[str], *, revision: str | None = None, dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu", tokenizer: str | os.PathLike[str] | bool = True, progress: Progress = silent,
) -> FastVLM:  # fmt: skip
    """Loads encoder, connector, Qwen2 and tokenizer; no second copy of the language model is held.

    Args:
        source: a folder, a file in one, or a hub id such as `apple/FastVLM-0.5B`.
        revision: branch, tag or commit of a hub id.
        dtype: `float32`, `bfloat16` or `float16`, of the language model; by default float32 on a CPU and the
            checkpoint's own elsewhere. Encoder and connector are bfloat16 with it, else float32, since the released
            encoder overflows in float16.
        device: where it runs.
        tokenizer: True for the one beside the weights, a folder or hub id for another's, False for none: prompts are
            token ids then.
        progress: told of downloads in bytes and of reading in tensors.

    What a person has to know of the weights is in the result's `info.notice`, and logged as a warning.

    Raises:
        UnavailableError: transformers is not installed, or nothing takes temporary files.
        CheckpointError: not a FastVLM, without connector, without tokenizer, or with unfit tensors.
        ConfigError: an unknown dtype, or a way of cutting pictures that is not known.
    """
    check_temporary_folder()  # transformers needs one
    import_qwen2()
    place = torch.device(device)
    located = locate(source if isinstance(source, str) else Path(source), revision=revision, progress=progress)
    main = located.configs.get("config.json", {})
    kept = _dtype(dtype, place, main)
    llava = _llava(located.source, main)
    # The small files first: report what they lack before reading gigabytes.
    words, generation = _tokenizer(tokenizer, located), read_generation(located)
    store = TensorStore(located)
    if not any(own_name(name) for name in store.names):
        raise unfit(located.source, "has no language model", "give a FastVLM checkpoint such as apple/FastVLM-0.5B")
    config = read_config(located.source, main, store)
    stops = stop_ids(located.source, config, generation, words)
    if words is not None:
        check_fits(located.source, words, config.vocab_size)
    checkpoint = load_located(located, store, require_connector=True, progress=progress)
    assert checkpoint.connector is not None  # it was required
    side = checkpoint.info.resolution or RESOLUTION
    tiling = Tiling.from_config(main, (side, side))
    language_model, notice = load_language_model(
        located.source, store, config, dtype=kept, device=place, progress=progress
    )
    info = _with_notice(checkpoint.info, notice)
    _check_width(located, checkpoint.connector.config.out_channels, config.hidden_size)
    vision = torch.bfloat16 if kept == torch.bfloat16 else torch.float32
    return FastVLM(
        info=info,
        architecture=checkpoint.encoder.config,
        tower=EagerTower(checkpoint.encoder, device=place, dtype=vision, preprocessing=checkpoint.info.preprocessing),
        connector=checkpoint.connector.to(place, vision),
        language_model=language_model,
        tokenizer=words,
        resolution=(side, side),
        tiling=tiling,
        image_newline=_newline(located.source, store, config.hidden_size),
        stop_ids=stops,
        # LLaVA trains and cuts at its own length, which is less than Qwen2's positions.
        context_length=min(config.max_position_embeddings, llava.tokenizer_model_max_length or MAX_CONTEXT),
        image_mark=f"<im_start>{MARK}<im_end>" if llava.mm_use_im_start_end else MARK,
    )


def _tokenizer(tokenizer: str | os.PathLike[str] | bool, located: Located) -> Any:
    if tokenizer is True:
        return load_tokenizer(located)
    return None if tokenizer is False else tokenizer_from(tokenizer)


def _with_notice(info: CheckpointInfo, notice: str | None) -> CheckpointInfo:
    """The info with a further notice, all of which are logged."""
    if notice is not None:
        info = replace(info, notice=f"{info.notice} {notice}" if info.notice else notice)
    if info.notice is not None:
        logging.getLogger("fvexport").warning("%s: %s", info.source, info.notice)
    return info


def _dtype(dtype: str | torch.dtype | None, device: torch.device, main: Mapping[str, Any]) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else stored_dtype(main)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES.values():
        raise ConfigError(f"unknown dtype {name!r}; known are {', '.join(DTYPES.values())}")
    return torch_dtype(name)


def _check_width(located: Located, connector: int, language_model: int) -> None:
    if connector != language_model:
        what = f"its connector ends with {connector} channels and its language model is {language_model} wide"
        raise unfit(located.source, what, "give a checkpoint whose parts belong together")


def _llava(source: str, main: Mapping[str, Any]) -> LlavaEntries:
    try:
        return parse(main, LlavaEntries)
    except RecordError as error:
        raise unfit(source, f"config.json is not LLaVA's ({error})", OWN_CONFIG) from None


def _newline(source: str, store: TensorStore, width: int) -> Tensor | None:
    """`image_newline` (d,), or None; raises CheckpointError for another shape or dtype."""
    name = next((name for name in NEWLINES if name in store.names), None)
    if name is None:
        return None
    info = store.describe([name])[name]
    if info.shape != (width,) or info.dtype not in FLOATS:
        problem = f"its {store.original(name)} is {info.dtype}{list(info.shape)}, not {width} floating-point values"
        raise unfit(source, problem, "give a checkpoint whose parts belong together")
    return next(tensor for _, tensor in store.read([name]))
