"""The output of a run on this machine: a file or a folder of shards that grows in its working folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ...core.errors import ArtifactError
from ...core.output_path import check_file, check_place, os_errors, put_file, put_folder
from .output_shards import NpyShards, ParquetShards, ShardForm
from .pending import Pending
from .request import Request
from .safetensors_file import check_names, read_header, reserved_bytes, write_header
from .source import Source
from .working_folder import WorkingFolder

MAX_LISTED = 1000
"""Failures of a folder that are listed; its `error` column has all of them."""


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


class Output(Protocol):
    """What a run adds to.

    Attributes:
        done: images that it holds, failed ones included.
        failures: of them.
    """

    done: int
    failures: Failures

    def append(self, ids: list[str], values: np.ndarray, reasons: list[str | None]) -> None:
        """Adds images, as `Pending.append` does."""
        ...

    def finish(self, *, force: bool) -> None:
        """Puts the output, which holds all images, in its place."""
        ...

    def close(self, *, flush: bool) -> None:
        """Closes its files; with `flush`, what was added is kept for the next run."""
        ...


def open_output(working: WorkingFolder, request: Request, source: Source) -> Output:
    """The output of a run, at the place where the earlier one ended."""
    with os_errors(working.out):
        if request.form == "safetensors":
            return _File(working, request, source)
        return _Shards(working, request)


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
        need = 8 + reserved_bytes(request, source) + request.images * each
        check_file(out, force=force, need_bytes=max(0, need - have_bytes))
        return
    # The last shard is there twice while it is written.
    check_place(out, max(0, (request.images + min(request.images, request.shard_rows)) * each - have_bytes))
    if os.path.lexists(out) and not is_empty_folder(out):
        if not (out.is_dir() and shard_form(request).is_ours(out)):
            raise ArtifactError(f"{out} exists and is not what this command writes; choose another --out (out)")
        if not force:
            raise ArtifactError(
                f"{out} exists{_difference(out, request)}; replace it with --force (force=True) "
                "or choose another --out (out)"
            )


def is_empty_folder(path: Path) -> bool:
    """Whether a path is a folder without anything in it."""
    return path.is_dir() and not any(path.iterdir())


def _difference(out: Path, request: Request) -> str:
    found = shard_form(request).request(out)
    differs = [] if found is None else found.differs(request)
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
        for name in source.ids():
            if name not in found[1]:
                failures.add(name, f"{name} failed when {out} was written", None)
        return failures
    form = shard_form(request)
    if not out.is_dir() or is_empty_folder(out) or not form.is_ours(out):
        return None
    earlier = form.request(out)
    if earlier is None or earlier.differs(request):
        return None
    if not count_all(form, out, request, failures):
        raise ArtifactError(f"images are missing in {out}; begin again with --force (force=True)")
    return failures


def count_all(form: ShardForm, folder: Path, request: Request, failures: Failures) -> bool:
    """Adds the failures of all shards; whether these have all images. Ray's shards have whatever number of them."""
    index = images = 0
    while (counted := form.count(folder, index, request)) is not None:
        if request.engine == "local" and counted[0] != _shard_images(request, index):
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


def _shard_images(request: Request, index: int) -> int:
    return min(request.shard_rows, request.images - index * request.shard_rows)


def _count_shard(form: ShardForm, folder: Path, index: int, request: Request, failures: Failures) -> bool:
    """Adds a shard's failures; False if there is no such shard. Raises ArtifactError if it is not whole."""
    counted = form.count(folder, index, request)
    if counted is None:
        return False
    if counted[0] != _shard_images(request, index):
        raise ArtifactError(
            f"shard {index} in {folder} has {counted[0]} images instead of {_shard_images(request, index)}; "
            "begin again with --force (force=True)"
        )
    _add_failures(form, folder, index, counted[1], failures)
    return True


class _Shards:
    """A folder of shards. Shard k has the images from k * shard_rows on."""

    def __init__(self, working: WorkingFolder, request: Request) -> None:
        self.working, self.request = working, request
        self.form = shard_form(request)
        self.failures = Failures()
        self.done = self.index = 0
        self._pending: Pending | None = None
        folder = working.result
        folder.mkdir(exist_ok=True)
        while self.done < request.images and _count_shard(self.form, folder, self.index, request, self.failures):
            self.done += _shard_images(request, self.index)
            self.index += 1
        self._remove_others()
        if self.done < request.images:
            self._begin_shard()

    def _names(self) -> tuple[Path, Path]:
        folder = self.working.path
        return folder / f"pending-{self.index:05}.rows", folder / f"pending-{self.index:05}.jsonl"

    def _remove_others(self) -> None:
        """Removes what is pending of other shards: they were finished just before a kill."""
        for path in self.working.path.glob("pending-*"):
            if path not in self._names():
                path.unlink()

    def _begin_shard(self) -> None:
        self._pending = Pending(*self._names(), self.request.shape, self.request.dtype)
        self.done += self._pending.images
        if self._pending.images > _shard_images(self.request, self.index):
            raise ArtifactError(f"{self._names()[1]} is damaged; begin again with --force (force=True)")
        if self._pending.images:
            for name, reason in zip(*self._pending.entries(), strict=True):
                if reason is not None:
                    self.failures.add(name, reason, MAX_LISTED)
        self._finish_shard_if_full()

    def append(self, ids: list[str], values: np.ndarray, reasons: list[str | None]) -> None:
        with os_errors(self.working.out):
            start = position = 0
            while start < len(ids):
                assert self._pending is not None
                room = _shard_images(self.request, self.index) - self._pending.images
                why = reasons[start : start + room]
                good = sum(reason is None for reason in why)
                self._pending.append(ids[start : start + room], values[position : position + good], why)
                for name, reason in zip(ids[start : start + room], why, strict=True):
                    if reason is not None:
                        self.failures.add(name, reason, MAX_LISTED)
                start, position, self.done = start + len(why), position + good, self.done + len(why)
                self._finish_shard_if_full()

    def _finish_shard_if_full(self) -> None:
        if self._pending is None or self._pending.images < _shard_images(self.request, self.index):
            return
        self.form.write(self.working.result, self.working.path, self.index, self._pending)
        self._pending.close()
        self._pending.remove()
        self._pending = None
        self.index += 1
        if self.done < self.request.images:
            self._pending = Pending(*self._names(), self.request.shape, self.request.dtype)

    def finish(self, *, force: bool) -> None:
        with os_errors(self.working.out):
            put_folder(self.working.result, self.working.out, force=force, ours=self.form.is_ours)

    def close(self, *, flush: bool) -> None:
        if self._pending is not None:
            with os_errors(self.working.out):
                self._pending.close(flush=flush)


class _File:
    """One safetensors file. Its header, which comes first, is written last, into space that was left for it."""

    def __init__(self, working: WorkingFolder, request: Request, source: Source) -> None:
        check_names(source)
        self.working, self.request = working, request
        self.failures = Failures()
        self.reserved = reserved_bytes(request, source)
        self._pending = Pending(
            working.result, working.path / "pending.jsonl", request.shape, request.dtype, 8 + self.reserved
        )
        self.done = self._pending.images
        if self.done:
            for name, reason in zip(*self._pending.entries(), strict=True):
                if reason is not None:
                    self.failures.add(name, reason, None)

    def append(self, ids: list[str], values: np.ndarray, reasons: list[str | None]) -> None:
        with os_errors(self.working.out):
            self._pending.append(ids, values, reasons)
        self.done += len(ids)
        for name, reason in zip(ids, reasons, strict=True):
            if reason is not None:
                self.failures.add(name, reason, None)

    def finish(self, *, force: bool) -> None:
        with os_errors(self.working.out):
            ids, reasons = self._pending.entries()
            self._pending.close()
            if self._pending.good:
                write_header(self.working.result, self.request, ids, reasons, self.reserved)
                put_file(self.working.result, self.working.out, force=force)

    def close(self, *, flush: bool) -> None:
        with os_errors(self.working.out):
            self._pending.close(flush=flush)
