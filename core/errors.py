"""The errors that are the user's to mend: one line each, shown without a traceback.

A message says what was wrong, what was found, and the option or command that mends it.
Anything that is not an `FvexportError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from .plain_text import without_escapes

_NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory",
    "failed to map segment",  # the system's loader, of an ImportError
    "could not create a primitive",  # oneDNN
    "can't start new thread",
)  # fmt: skip
LONGEST = 1200
"""Characters of an error's message at most; longer ones lose their middle."""


class FvexportError(Exception):
    """Base of every error a user can mend; the command line prints it and exits with 1.

    Its message is one line, whatever names and foreign messages it quotes.
    """

    def __init__(self, message: str) -> None:
        line = one_line(message)
        if len(line) > LONGEST:  # a value quoted from a file; the fix at the end is kept
            line = f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 3 :]}"
        super().__init__(line)


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of a foreign error's message, without colours, or its type if it has none."""
    return (without_escapes(str(error)).strip().splitlines() or [type(error).__name__])[0][:limit]


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in whichever words a library has for it."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(part in words for part in _NO_MEMORY)


def root_cause(error: BaseException) -> BaseException:
    """The error that others were raised from or while handling: what a library's chain of errors began with."""
    seen = {id(error)}
    while (before := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        if id(before) in seen:
            break
        seen.add(id(before))
        error = before
    return error


def one_line(text: object) -> str:
    """`text` without line breaks, runs of blanks, colours and control characters; names in files can hold anything."""
    # Surrogates stand for a file name's undecodable bytes; whoever prints them decides how.
    kept = (c if c.isprintable() or "\ud800" <= c <= "\udfff" else " " for c in without_escapes(str(text)))
    return " ".join("".join(kept).split())


class ConfigError(FvexportError, ValueError):
    """A shape, variant or option that the model cannot have."""


class CheckpointError(FvexportError):
    """A checkpoint that is missing, unreadable, of another model, or with unfit tensors."""


class ImageError(FvexportError):
    """A file or array that is not a usable image."""


class ArtifactError(FvexportError):
    """An artifact folder that is missing, damaged, or cannot be written."""


class ExportError(FvexportError):
    """The exporter produced no graph, or a graph that breaks one of our rules."""


class PromptError(FvexportError, ValueError):
    """A conversation that the model cannot take: its `<image>` marks, its roles, its length."""


class UnavailableError(FvexportError):
    """Something this machine lacks; the message names the command that installs it."""


class FvexportWarning(UserWarning):
    """Something a user should know about a result that is valid; the command line prints it as a notice."""


class ImageWarning(FvexportWarning):
    """An image that may not look as intended, or files that a search for images left out."""


class UnfinishedWarning(FvexportWarning):
    """A run ends early, and what it has done is kept for the next one."""


class PlacementWarning(FvexportWarning):
    """An artifact is slow, or computed in a special way, on the backend and machine that run it."""
