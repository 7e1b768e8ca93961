"""The tokenizer beside the weights, through transformers, and the tokens that end an answer.

No code of the folder is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ...core.errors import CheckpointError, UnavailableError, first_line
from ...core.home import expand_home
from ...core.input_file import read_bytes
from ...core.records import RecordError, parse
from ...core.temporary import temporary_folder
from ..checkpoint.hub import locate_files
from ..checkpoint.messages import shown, unfit
from ..checkpoint.weights_files import Located, parse_json
from ..qwen2 import INSTALL
from .records import GenerationEntries, TokenizerEntries, token_ids
from .tokenizer_file import TokenizerFile

T = TypeVar("T")

FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
PIPELINE, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
START, END = "<|im_start|>", "<|im_end|>"
NO_LIMIT = 1 << 30
"""Of a tokenizer's `model_max_length`, which would only warn: the model's context is checked with the images."""
MEND = "give the folder of a tokenizer, such as that of apple/FastVLM-0.5B"
OWN = "use the checkpoint's own Qwen2 tokenizer"
UNREADABLE = "its tokenizer cannot be read"


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
    if os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises for a name that is too long
        return _opened(str(source), [path / name for name in FILES if os.path.lexists(path / name)])
    if os.path.lexists(path) or not isinstance(source, str) or "/" not in source:
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
    settings = _checked(source, names[SETTINGS], TokenizerEntries, OWN) if SETTINGS in names else TokenizerEntries()
    pipeline = None
    if PIPELINE in names:
        pipeline = parse_json(source, names.pop(PIPELINE))
        _parsed(source, PIPELINE, pipeline, TokenizerFile, OWN)
    tokenizer, known = guarded(f"{shown(source)}: {UNREADABLE}", _read, transformers, names, settings, pipeline)
    if lacking := [token for token in (START, END) if token not in known]:
        raise unfit(source, f"its tokenizer has no {' and no '.join(lacking)}, so it is not ChatML's", MEND)
    return tokenizer


def _read(
    transformers: Any, files: Mapping[str, Path], settings: TokenizerEntries, pipeline: Mapping[str, Any] | None
) -> tuple[Any, dict[str, int]]:
    """The tokenizer and its vocabulary; `pipeline` is the content of tokenizer.json."""
    maker = transformers.AutoTokenizer if settings.tokenizer_class else transformers.Qwen2TokenizerFast
    # In a folder of their own: beside a config.json of LLaVA's, transformers warns of a model that it does not know.
    with temporary_folder() as folder:
        for name, path in files.items():
            (folder / name).write_bytes(read_bytes(path))
        if pipeline is not None:  # what was checked, so that no other reading of the file's text counts
            (folder / PIPELINE).write_bytes(msgspec.json.encode(pipeline))
        tokenizer = maker.from_pretrained(folder, trust_remote_code=False, model_max_length=NO_LIMIT)
    known = tokenizer.get_vocab()
    if not all(isinstance(token, int) and token >= 0 for token in known.values()):
        raise ValueError("negative token ids")
    # What the files say about padding, decoding and so on shows only in use.
    tokenizer.decode(tokenizer(f"{START}user\n{END}", add_special_tokens=False).input_ids)
    return tokenizer, known


def guarded(problem: str, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """A call into transformers' tokenizers.

    Each release has its own kinds of errors, and a panic of the library in Rust is no `Exception` at all.

    Raises:
        CheckpointError: any of these; the message is `problem (reason); fix`.
        UnavailableError: the system refuses a temporary folder.
    """
    try:
        return function(*arguments, **named)
    except UnavailableError:
        raise
    except BaseException as error:
        # The type cannot be imported: each library in Rust makes its own.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{problem} ({first_line(error)}); {MEND}") from None


def _checked(source: str, path: Path, kind: type[T], mend: str = "correct that file") -> T:
    """A JSON file as a record; raises CheckpointError."""
    return _parsed(source, path.name, parse_json(source, path), kind, mend)


def _parsed(source: str, name: str, content: Mapping[str, Any], kind: type[T], mend: str) -> T:
    try:
        return parse(content, kind)
    except RecordError as error:
        raise unfit(source, f"{name} has a wrong value ({error})", mend) from None


def _vocabulary(source: str, tokenizer: Any) -> dict[str, int]:
    known: dict[str, int] = guarded(f"{shown(source)}: {UNREADABLE}", tokenizer.get_vocab)
    return known


def check_fits(source: str, tokenizer: Any, rows: int) -> None:
    """Raises CheckpointError for a tokenizer that makes ids beyond the model's embeddings."""
    most = max(_vocabulary(source, tokenizer).values())
    if most >= rows:
        raise unfit(source, f"its tokenizer has tokens up to {most} and the model {rows} embeddings", MEND)


def stop_ids(source: str, config: Any, generation: GenerationEntries, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the model's, those of generation_config.json, and ChatML's.

    Raises CheckpointError for one that the model does not have.
    """
    found = {*token_ids(config.eos_token_id), *token_ids(generation.eos_token_id)}
    if beyond := [token for token in sorted(found) if token >= config.vocab_size]:
        problem = f"{GENERATION} has eos_token_id {beyond[0]}, and the model only {config.vocab_size} tokens"
        raise unfit(source, problem, "correct that file")
    if tokenizer is not None:
        found.add(_vocabulary(source, tokenizer)[END])
        own = guarded(f"{shown(source)}: {UNREADABLE}", getattr, tokenizer, "eos_token_id")
        if own is not None:
            found.add(own)
    return frozenset(found)


def read_generation(located: Located) -> GenerationEntries:
    """generation_config.json; no entries where there is none."""
    path = located.optional(GENERATION)
    return _checked(located.source, path, GenerationEntries) if path else GenerationEntries()
