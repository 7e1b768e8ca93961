"""What a run of `encode` does around its work, on this machine or on Ray: it goes on, or finds that all is done."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import ArtifactError, UnfinishedWarning
from ...core.output_path import os_errors
from .existing import Failures, check_output, finished
from .request import Request
from .sources.source import Source
from .working_folder import WorkingFolder


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """What `encode_images` did.

    Attributes:
        out: the file or folder; a file was not written where `encoded` is 0.
        encoded: images whose features are in it.
        resumed: images of these, or failed ones, that an earlier run had done.
        failed_count: images without features.
        failed: (image, reason) of them; of a folder the first thousand.
        seconds: for this run.
        shape: (tokens, channels) of one image's features, or (channels) of pooled ones.
        dtype: of the features.
        form: safetensors, parquet or npy.
        backend: what ran the artifact.
        backend_why: why `auto` took it; empty if it was named.
    """

    out: Path
    encoded: int
    resumed: int
    failed_count: int
    failed: list[tuple[str, str]]
    seconds: float
    shape: tuple[int, ...]
    dtype: str
    form: str
    backend: str
    backend_why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        failed = [{"image": name, "reason": reason} for name, reason in self.failed]
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return content | {"out": str(self.out), "failed": failed, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a run is to write.

    Attributes:
        out: the file or folder.
        source: the images.
        artifact: the folder of what encodes them.
        request: what is asked for.
        force: replace what stands at `out`, and drop an unfinished run of another request.
    """

    out: Path
    source: Source
    artifact: Path
    request: Request
    force: bool


class Outcome(NamedTuple):
    """What the work found: images without features, and how many images an earlier run had done."""

    failures: Failures
    resumed: int


def encode_into(target: Target, work: Callable[[WorkingFolder], Outcome], start: float, why: str = "") -> EncodeReport:
    """Has `work` write the output, unless an earlier run with the same request has written all of it.

    Args:
        target: what is to be written.
        work: writes it in the working folder and puts it in its place.
        start: when the run began, by `time.perf_counter`.
        why: the backend was chosen.

    Raises ArtifactError: the output exists and `force` is off, it cannot be written, another run writes it, an earlier
    run of another request is not finished, or it is a file that the run reads.
    """
    out, request, source = target.out, target.request, target.source
    if request.form != "safetensors" and out.is_symlink() and out.is_dir():
        out = out.resolve()  # the link stays, and the work is done on the disk that it leads to
    working = WorkingFolder(out)

    def report(outcome: Outcome) -> EncodeReport:
        return report_of(target, outcome, start, why)

    with os_errors(out):
        _check_not_read(target)
        failures = None if target.force else finished(out, request, source)
        if failures is not None:
            _drop(working, request)
            return report(Outcome(failures, len(source)))
        check_output(out, request, source, force=target.force, have_bytes=working.size())
    with working.held(request, force=target.force):
        with os_errors(out):  # once more, now that no other run can write it
            failures = _finished(target, out) if working.placing or not target.force else None
            if failures is not None:
                working.keep = False
                return report(Outcome(failures, len(source)))
            check_output(out, request, source, force=target.force, have_bytes=working.size())
        return report(work(working))


def _finished(target: Target, out: Path) -> Failures | None:
    try:
        return finished(out, target.request, target.source)
    except ArtifactError:  # it is damaged
        if target.force:
            return None
        raise


@contextmanager
def told_to_go_on(working: WorkingFolder) -> Iterator[None]:
    """Warns with UnfinishedWarning if the block ends early and the working folder is kept."""
    try:
        yield
    except BaseException:
        if working.keep:
            warnings.warn(
                "what is encoded is kept; the same command goes on from there", UnfinishedWarning, stacklevel=3
            )
        raise


def _check_not_read(target: Target) -> None:
    """Raises ArtifactError if the output is the artifact, one of its files, or a file of the source."""
    out = target.out
    real = Path(os.path.realpath(out))  # also of a link that leads to itself
    if real == Path.cwd() and target.request.form != "safetensors":
        raise ArtifactError(f"{out} is the current folder; name a new folder with --out (out)")
    if real.is_relative_to(target.artifact.resolve()):
        raise ArtifactError(f"{out} is a part of the artifact; choose another --out (out)")
    if not os.path.lexists(out):
        return
    for path in target.source.files():
        with suppress(OSError, ValueError):
            if path.samefile(out):
                raise ArtifactError(f"{out} is one of the images or files that are read; choose another --out (out)")


def _drop(working: WorkingFolder, request: Request) -> None:
    """Removes what a run with the same request left beside its output, which is whole."""
    with suppress(ArtifactError):
        unfinished = working.unfinished()
        if working.path.is_dir() and (unfinished is None or not unfinished.differs(request)):
            with working.held(request, force=False):
                working.keep = False


def report_of(target: Target, outcome: Outcome, start: float, why: str) -> EncodeReport:
    """The report of a run that is done."""
    request, failures = target.request, outcome.failures
    return EncodeReport(
        out=target.out,
        encoded=request.images - failures.count,
        resumed=outcome.resumed,
        failed_count=failures.count,
        failed=failures.listed,
        seconds=time.perf_counter() - start,
        shape=request.shape,
        dtype=request.dtype,
        form=request.form,
        backend=request.backend,
        backend_why=why,
    )
