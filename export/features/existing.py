"""What stands at an output already: whether it may be replaced, and whether it is all that a run would write."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import ArtifactError
from ...core.output_path import check_file, check_place
from .output_shards import NpyShards, ParquetShards, ShardForm
from .request import Request
from .safetensors_file import file_bytes, read_header, reserved_bytes
from .sources.source import Source

MAX_LISTED = 1000
"""Failures of a folder that are listed; its `error` column has all of them."""


REPLACE = "replace it with --force (force=True) or choose another --out (out)"


@dataclass
class Failures:
    """Images without features: their number, and the first of them as (id, reason)."""

    count: int = 0
    listed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str, most: int | None) -> None:
        """Counts one, and lists it unless `most` are listed."""
        self.count += 1
        if most is None or len(self.listed) < most:
            self.listed.append((name, reason))

    def add_all(self, ids: list[str], reasons: list[str | None], most: int | None) -> None:
        """Adds those of some images that have a reason."""
        for name, reason in zip(ids, reasons, strict=True):
            if reason is not None:
                self.add(name, reason, most)


def check_output(out: Path, request: Request, source: Source, *, force: bool, have_bytes: int) -> None:
    """Raises ArtifactError if `out` cannot be written.

    Args:
        out: the output.
        request: what is to be written.
        source: the images.
        force: what is there may be replaced.
        have_bytes: that an earlier run has written.
    """
    each = request.row_bytes
    if request.form == "safetensors":
        if not force and (found := read_header(out)) is not None:
            raise ArtifactError(f"{out} exists{_words(found[0].differs(request))}; {REPLACE}")
        need = 8 + reserved_bytes(request, source) + request.images * each
        check_file(out, force=force, need_bytes=max(0, need - have_bytes))
        return
    # The last shard is there twice while it is written.
    check_place(out, max(0, (request.images + min(request.images, request.shard_rows)) * each - have_bytes))
    if os.path.lexists(out) and not is_empty_folder(out):
        if not (out.is_dir() and shard_form(request).is_ours(out)):
            raise ArtifactError(f"{out} exists and is not what this command writes; choose another --out (out)")
        if not force:
            earlier = shard_form(request).request_in(out)
            differs = [] if earlier is None else earlier.differs(request)
            raise ArtifactError(f"{out} exists{_words(differs)}; {REPLACE}")


def is_empty_folder(path: Path) -> bool:
    """Whether a path is a folder without anything in it."""
    return path.is_dir() and not any(path.iterdir())


def _words(differs: list[str]) -> str:
    return f", of another {', another '.join(differs)}" if differs else ""


def finished(out: Path, request: Request, source: Source) -> Failures | None:
    """The failures of the output of an earlier run with the same request; None if there is no such output.

    Raises ArtifactError if a shard of it is missing or damaged.
    """
    if not os.path.lexists(out):
        return None
    failures = Failures()
    if request.form == "safetensors":
        found = read_header(out)
        if found is None or found[0].differs(request):
            return None
        if out.stat().st_size != file_bytes(out, request, len(found[1])):
            raise ArtifactError(f"{out} is cut off; begin again with --force (force=True)")
        for name in source.ids():
            if name not in found[1]:
                failures.add(name, f"{name} failed when {out} was written", None)
        return failures
    form = shard_form(request)
    if not out.is_dir() or is_empty_folder(out) or not form.is_ours(out):
        return None
    earlier = form.request_in(out)
    if earlier is None or earlier.differs(request):
        return None
    if not count_all(form, out, request, failures):
        raise ArtifactError(f"images are missing in {out}; begin again with --force (force=True)")
    return failures


def count_all(form: ShardForm, folder: Path, request: Request, failures: Failures) -> bool:
    """Adds the failures of all shards; whether these have all images. Ray's shards have whatever number of them."""
    index = images = 0
    while (counted := form.count(folder, index)) is not None:
        if request.engine == "local" and counted[0] != shard_images(request, index):
            return False
        _add_failures(form, folder, index, counted[1], failures)
        index, images = index + 1, images + counted[0]
    return images == request.images


def _add_failures(form: ShardForm, folder: Path, index: int, count: int, failures: Failures) -> None:
    """Adds the `count` failures of a shard, and lists them up to `MAX_LISTED`."""
    if not count:
        return
    for number, (name, reason) in enumerate(form.failures(folder, index)):
        if len(failures.listed) >= MAX_LISTED:
            failures.count += count - number
            break
        failures.add(name, reason, MAX_LISTED)


def shard_form(request: Request) -> ShardForm:
    """How the shards of a request are written."""
    return NpyShards(request) if request.form == "npy" else ParquetShards(request)


def shard_images(request: Request, index: int) -> int:
    """How many images shard `index` of a run on one machine has."""
    return min(request.shard_rows, request.images - index * request.shard_rows)


def count_shard(form: ShardForm, folder: Path, index: int, request: Request, failures: Failures) -> bool:
    """Adds a shard's failures; False if there is no such shard. Raises ArtifactError if it is not whole."""
    counted = form.count(folder, index)
    if counted is None:
        return False
    if counted[0] != shard_images(request, index):
        raise ArtifactError(
            f"shard {index} in {folder} has {counted[0]} images instead of {shard_images(request, index)}; "
            "begin again with --force (force=True)"
        )
    _add_failures(form, folder, index, counted[1], failures)
    return True
