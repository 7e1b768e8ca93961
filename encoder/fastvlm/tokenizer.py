"""The tokenizer beside the weights, through transformers, and the tokens that end an answer.

No code of the folder is run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError, UnavailableError
from ...core.home import expand_home
from ..checkpoint.hub import locate_files
from ..checkpoint.messages import shown, unfit
from ..checkpoint.weights_files import Located
from ..qwen2 import INSTALL

FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
START, END = "<|im_start|>", "<|im_end|>"
MEND = "give the folder of a tokenizer, such as that of apple/FastVLM-0.5B"


def load_tokenizer(located: Located) -> Any:
    """The tokenizer beside the weights.

    Raises:
        CheckpointError: none there, unreadable, or not ChatML's.
        UnavailableError: transformers is not installed.
    """
    found = [path for name in FILES if (path := located.optional(name)) is not None]
    return _opened(located.source, found)


def tokenizer_from(source: str | os.PathLike[str]) -> Any:
    """The tokenizer of another folder or hub id, for weights that came without one."""
    path = expand_home(source)
    if path.is_dir():
        return _opened(str(source), [path / name for name in FILES if (path / name).is_file()])
    if path.exists() or not isinstance(source, str) or "/" not in source:
        raise unfit(source, "holds no tokenizer", MEND)
    return _opened(source, locate_files(source, FILES))


def _opened(source: str, files: Iterable[Path]) -> Any:
    names = {path.name: path for path in files}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names.keys():
        raise unfit(source, "has no tokenizer (tokenizer.json, or vocab.json and merges.txt)", MEND)
    try:
        import transformers
    except ImportError:
        raise UnavailableError(f"a tokenizer needs transformers, which is not installed; `{INSTALL}`") from None
    try:
        tokenizer = _read(transformers, names)
    except Exception as error:  # each release of transformers and tokenizers has its own kinds
        raise unfit(source, f"its tokenizer cannot be read ({shown(error)})", MEND) from None
    known = tokenizer.get_vocab()
    if lacking := [token for token in (START, END) if token not in known]:
        raise unfit(source, f"its tokenizer has no {' and no '.join(lacking)}, so it is not ChatML's", MEND)
    return tokenizer


def _read(transformers: Any, files: Mapping[str, Path]) -> Any:
    # In a folder of their own: beside a config.json of LLaVA's, transformers warns of a model that it does not know.
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files.items():
            shutil.copy(path, Path(folder) / name)
        settings = Path(folder) / "tokenizer_config.json"
        named = settings.exists() and "tokenizer_class" in json.loads(settings.read_text("utf-8"))
        maker = transformers.AutoTokenizer if named else transformers.Qwen2TokenizerFast
        return maker.from_pretrained(folder, trust_remote_code=False)


def check_fits(source: str, tokenizer: Any, rows: int) -> None:
    """Raises CheckpointError for a tokenizer that makes ids beyond the model's embeddings."""
    most = max(tokenizer.get_vocab().values())
    if most >= rows:
        raise unfit(source, f"its tokenizer has tokens up to {most} and the model {rows} embeddings", MEND)


def stop_ids(config: Any, generation: Mapping[str, Any], tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the model's, those of generation_config.json, and ChatML's."""
    found: set[int] = set()
    for value in (config.eos_token_id, generation.get("eos_token_id")):
        found.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    if tokenizer is not None:
        found.add(tokenizer.get_vocab()[END])
        if tokenizer.eos_token_id is not None:
            found.add(tokenizer.eos_token_id)
    return frozenset(found)


def read_generation(located: Located) -> Mapping[str, Any]:
    """generation_config.json, of which only the stop tokens are taken; empty where there is none."""
    path = located.optional("generation_config.json")
    try:
        content = json.loads(path.read_text("utf-8")) if path else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{located.source}: generation_config.json cannot be read ({shown(error)})") from None
    return content if isinstance(content, dict) else {}
