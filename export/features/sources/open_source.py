"""What a user names -> a source of images: files, folders, lists, tables or tar files."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO, Literal

from ....core.errors import ConfigError, ImageError, ImageWarning, first_line
from ....core.input_file import open_regular
from ....core.phrases import first_few
from ....encoder.image import Found, image_suffixes, images_in
from .path_list import read_list
from .path_source import PathCollector, look
from .shards import shard_id
from .source import Source

Kind = Literal["images", "tables", "tars"]

NO_IMAGES = "no images given; name at least one image or folder"
TABLES = (".parquet", ".arrow", ".feather")
TARS = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".zst", ".tar.lz4")
MAX_SHARDS = 1_000_000
"""Names that a pattern such as `{00000..99999}` may stand for."""

_NAMES = {"images": "images", "tables": "tables", "tars": "tar files"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.(-?[0-9]{1,18}))?")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Columns of tables; of no use to other sources.

    Attributes:
        image_column: has the images; None to find it.
        id_column: has the ids; None for `FILE#ROW`.
    """

    image_column: str | None = None
    id_column: str | None = None


def open_source(
    inputs: Sequence[str | os.PathLike[str]], options: SourceOptions | None = None, stdin: BinaryIO | None = None, *,
    leave_out: Path | None = None,
) -> Source:  # fmt: skip
    """The images that `inputs` stand for, in order. Images that are given twice are read once.

    An input is one of these, and only the first four may be together:

    - an image: a path with any other suffix than those below, also of a missing file, which becomes an item that fails;
    - a folder, which is searched as `search_images` does;
    - `@list.txt`: a file with one path of an image or folder per line, in UTF-8, relative to the current folder;
    - `-`: such a list on stdin;
    - a table: a `.parquet`, `.arrow` or `.feather` file, or a folder that has those and no images;
    - a `.tar` file, or a folder that has those and no images.

    Names of tables and tar files may have ranges and alternatives in braces: `shard-{00000..00009}.tar`.

    Warns with ImageWarning of each of the source's notices, such as what was left out of a folder.

    Args:
        inputs: see above.
        options: columns of tables.
        stdin: what `-` reads.
        leave_out: a folder that is not searched for tables and tar files, because it is the output.

    Raises:
        ConfigError: no input; kinds that cannot be together; an option without effect; a bad pattern.
        ImageError: a folder without images; a list, or every shard, that cannot be read; repeated ids.
        UnavailableError: tables without pyarrow.
    """
    options = options or SourceOptions()
    files = _Files()
    kinds: dict[Kind, str] = {}
    shards: list[Path] = []
    images = image_suffixes()
    for given in inputs:
        text = os.fspath(given)
        kind, found = _classify(text, images, leave_out)
        kinds.setdefault(kind, text)
        if len(kinds) > 1:
            (one, first), (other, second) = kinds.items()
            raise ConfigError(
                f"{_NAMES[one]} and {_NAMES[other]} cannot be in one run ({first}, {second}); run once for each"
            )
        if kind != "images":
            shards += found
        elif text == "-":
            files.add_list(stdin, "stdin")
        elif text.startswith("@"):
            files.add_list_file(text[1:])
        else:
            files.add(text)
    if not kinds:
        raise ConfigError(NO_IMAGES)
    if "tables" not in kinds:
        for name, value in (("image-column", options.image_column), ("id-column", options.id_column)):
            if value is not None:
                raise ConfigError(f"--{name} has no effect on {_NAMES[next(iter(kinds))]}; leave it out")

    source: Source
    if "images" in kinds:
        source = files.source()
    elif "tars" in kinds:
        from .tar_source import open_tars

        source = open_tars(_once(shards))
    else:
        from .table_source import open_tables

        source = open_tables(_once(shards), options.image_column, options.id_column)
    for notice in source.notices:
        warnings.warn(notice, ImageWarning, stacklevel=2)
    return source


class _Files:
    """Collects images from files, folders and lists."""

    def __init__(self) -> None:
        self._paths = PathCollector()
        self._left_out = Found()
        self._lists: list[str] = []

    def add(self, text: str) -> None:
        """Adds a file, or the images in a folder."""
        size, folder = look(text)
        if not text:
            raise ImageError("the path of an image is empty: give the path of a file or folder")
        if folder:
            found = Found()
            for file in images_in(Path(text), found):
                self._paths.add(file, look(file)[0])
            self._left_out.add(found)
        else:
            self._paths.add(text, size)

    def add_list(self, lines: BinaryIO | None, name: str) -> None:
        """Adds the files and folders that a list names."""
        if lines is None:
            raise ConfigError("there is no stdin to read paths from; name files, folders or @LIST")
        if name in self._lists:
            raise ConfigError(f"{name} is given twice; name it once")
        self._lists.append(name)
        for number, text in read_list(lines, name):
            if text.lower().endswith((*TABLES, *TARS, *COMPRESSED)):
                raise ConfigError(
                    f"line {number} of {name} is no image but {text}; name tables and tar files as arguments"
                )
            try:
                self.add(text)
            except ImageError as error:
                raise ImageError(f"line {number} of {name}: {error}") from None

    def add_list_file(self, path: str) -> None:
        """Adds what the list in a file names."""
        try:
            lines = open_regular(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ImageError(
                f"cannot read the list {path or repr(path)} ({reason}); write @LIST for a list, ./@NAME for an image"
            ) from None
        with lines:
            self.add_list(lines, path)

    def source(self) -> Source:
        """All of them, once."""
        if not len(self._paths):
            raise ConfigError(
                f"{first_few(self._lists)} {'names' if len(self._lists) == 1 else 'name'} no image; "
                "write one path per line"
            )
        notice = self._left_out.notice()
        lists = tuple(name for name in self._lists if name != "stdin")
        return self._paths.source([notice] if notice else [], lists)


def _classify(text: str, images: set[str], leave_out: Path | None) -> tuple[Kind, list[Path]]:
    """The kind of an input, and its shards if it has any."""
    if text == "-" or text.startswith("@"):
        return "images", []
    lower = text.lower()
    if lower.endswith((*TABLES, *TARS)):
        paths = [Path(text)] if os.path.lexists(text) else [Path(name) for name in expand_braces(text)]
        kind: Kind = "tars" if lower.endswith(TARS) else "tables"
        found: list[Path] = []
        for path in paths:
            if look(path)[1]:  # Spark calls the folder of a dataset data.parquet
                inside, shards = _inside(path, leave_out)
                if inside != kind:
                    raise ImageError(f"no {lower.rpartition('.')[2]} file in folder {path}")
                found += shards
            elif not os.path.lexists(path):
                raise ImageError(f"{shard_id(path)} does not exist; check its name")
            else:
                found.append(path)
        return kind, found
    if lower.endswith(COMPRESSED) and not look(text)[1]:
        raise ImageError(f"{text} is compressed, so images cannot be read by position; decompress it to a .tar file")
    if look(text)[1]:
        return _inside(Path(text), leave_out)
    return "images", []


def _inside(folder: Path, leave_out: Path | None) -> tuple[Kind, list[Path]]:
    """What a folder has: `images` at the first image, or else its tables or tar files, in order.

    Names that begin with `_` or `.` are ignored, as pyarrow and Spark do. Tables beside tar files of the same names
    describe the images, as img2dataset writes them.
    """
    suffixes = image_suffixes()
    tables: list[Path] = []
    tars: list[Path] = []
    denied: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=denied.append):
        folders[:] = [
            name for name in folders if not name.startswith(("_", ".")) and not _is_at(Path(place, name), leave_out)
        ]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  # a text, for speed
            if name.startswith(("_", ".")):
                continue
            if suffix in suffixes:
                return "images", []
            if suffix in TABLES:
                tables.append(Path(place, name))
            elif suffix in TARS:
                tars.append(Path(place, name))
    if not tables and not tars:
        return "images", []
    if denied:
        raise ImageError(f"cannot read folder {denied[0].filename} ({denied[0].strerror}); check its permissions")
    stems = {path.with_suffix("") for path in tars}
    if tars and all(path.with_suffix("") in stems for path in tables):
        return "tars", sorted(tars)
    if tars:
        raise ConfigError(
            f"folder {folder} has tables and tar files ({tables[0]}, {tars[0]}); name the files of one kind"
        )
    return "tables", sorted(tables)


def _is_at(folder: Path, other: Path | None) -> bool:
    with suppress(OSError):
        return other is not None and folder.samefile(other)
    return False


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern stands for, as the package braceexpand, which WebDataset uses, expands them.

    `{00000..00009}` is a range, of numbers with leading zeros if it has them, and maybe with a step (`{0..9..3}`);
    `{a,b}` are alternatives. Other braces stay as they are; patterns are not nested. Raises ConfigError for more than
    `MAX_SHARDS` names.
    """
    parts: list[Sequence[str]] = []
    count, end = 1, 0
    for match in _BRACES.finditer(pattern):
        choices = _choices(match[1])
        count *= len(choices)
        if count > MAX_SHARDS:
            raise ConfigError(f"{pattern} stands for more than {MAX_SHARDS} files; write a smaller range")
        parts += [[pattern[end : match.start()]], choices]
        end = match.end()
    return ["".join(words) for words in product(*parts, [pattern[end:]])]


def _choices(inner: str) -> Sequence[str]:
    if found := _RANGE.fullmatch(inner):
        first, last = int(found[1]), int(found[2])
        step = abs(int(found[3] or 1)) or 1
        zeros = any(re.match("-?0[0-9]", end) for end in (found[1], found[2]))
        width = max(len(found[1]), len(found[2])) if zeros else 0
        if abs(last - first) // step >= MAX_SHARDS:
            raise ConfigError(f"{{{inner}}} stands for more than {MAX_SHARDS} files; write a smaller range")
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return [f"{number:0{width}d}" for number in numbers]
    return inner.split(",") if "," in inner else [f"{{{inner}}}"]


def _once(paths: list[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))
