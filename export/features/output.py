"""The output of a run on this machine: a file or a folder of shards that grows in its working folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from ...core.errors import ArtifactError
from ...core.output_path import os_errors, put_file, put_folder, remove
from .existing import MAX_LISTED, Failures, count_shard, finished, shard_form, shard_images
from .pending import Pending
from .request import Request
from .safetensors_file import check_names, reserved_bytes, write_header
from .sources.source import Source
from .working_folder import WorkingFolder


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
        if working.placing and _is_not_whole(working, request, source):
            remove(working.result)  # it is what the result has taken the place of
        return _Shards(working, request, source)


def _is_not_whole(working: WorkingFolder, request: Request, source: Source) -> bool:
    try:
        return finished(working.result, request, source) is None
    except ArtifactError:
        return True


class _Shards:
    """A folder of shards. Shard k has the images from k * shard_rows on."""

    def __init__(self, working: WorkingFolder, request: Request, source: Source) -> None:
        self.working, self.request, self.source = working, request, source
        self.form = shard_form(request)
        self.failures = Failures()
        self.done = self.index = 0
        self._pending: Pending | None = None
        folder = working.result
        folder.mkdir(exist_ok=True)
        while self.done < request.images and count_shard(self.form, folder, self.index, request, self.failures):
            self.done += shard_images(request, self.index)
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

    def _open_pending(self) -> Pending:
        start = self.index * self.request.shard_rows
        wanted = self.source.part(start, start + shard_images(self.request, self.index)).ids()
        return Pending(*self._names(), wanted, self.request.shape, self.request.dtype)

    def _begin_shard(self) -> None:
        self._pending = self._open_pending()
        self.done += self._pending.images
        if self._pending.images:
            self.failures.add_all(*self._pending.entries(), MAX_LISTED)
        self._finish_shard_if_full()

    def append(self, ids: list[str], values: np.ndarray, reasons: list[str | None]) -> None:
        with os_errors(self.working.out):
            start = position = 0
            while start < len(ids):
                assert self._pending is not None
                room = shard_images(self.request, self.index) - self._pending.images
                why = reasons[start : start + room]
                good = sum(reason is None for reason in why)
                self._pending.append(ids[start : start + room], values[position : position + good], why)
                self.failures.add_all(ids[start : start + room], why, MAX_LISTED)
                start, position, self.done = start + len(why), position + good, self.done + len(why)
                self._finish_shard_if_full()

    def _finish_shard_if_full(self) -> None:
        if self._pending is None or self._pending.images < shard_images(self.request, self.index):
            return
        self.form.write(self.working.result, self.working.path, self.index, self._pending)
        self._pending.close()
        self._pending.remove()
        self._pending = None
        self.index += 1
        if self.done < self.request.images:
            self._pending = self._open_pending()

    def finish(self, *, force: bool) -> None:
        with os_errors(self.working.out):
            self.working.mark_placing()
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
            working.result, working.path / "pending.jsonl", source.ids(), request.shape, request.dtype,
            8 + self.reserved,
        )  # fmt: skip
        self.done = self._pending.images
        if self.done:
            self.failures.add_all(*self._pending.entries(), None)

    def append(self, ids: list[str], values: np.ndarray, reasons: list[str | None]) -> None:
        with os_errors(self.working.out):
            self._pending.append(ids, values, reasons)
        self.done += len(ids)
        self.failures.add_all(ids, reasons, None)

    def finish(self, *, force: bool) -> None:
        with os_errors(self.working.out):
            ids, reasons = self._pending.entries()
            self._pending.close()
            self.working.mark_placing()
            if self._pending.good:
                write_header(self.working.result, self.request, ids, reasons, self.reserved)
                put_file(self.working.result, self.working.out, force=force)

    def close(self, *, flush: bool) -> None:
        with os_errors(self.working.out):
            self._pending.close(flush=flush)
