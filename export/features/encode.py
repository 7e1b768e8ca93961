"""Many images -> one file or dataset of features, on this machine, in memory that does not grow with their number."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...core.errors import ArtifactError, ConfigError
from ...core.progress import NotedProgress, Progress, silent
from ..runtime.encoder import Encoder
from .decode import Batch, BatchReader, check_workers
from .feature_form import FeatureForm
from .output import Output, open_output
from .pace import Pace
from .request import make_request
from .run import EncodeReport, Outcome, Target, encode_into, told_to_go_on
from .sources.path_source import PathCollector, PathSource, look
from .sources.source import Source
from .working_folder import WorkingFolder
from .writer import Writer


def encode_images(
    images: Source | Iterable[str | os.PathLike[str]], encoder: Encoder, out: str | os.PathLike[str], *,
    form: FeatureForm | None = None, force: bool = False, batch_size: int | None = None,
    workers: int | None = None, progress: Progress = silent,
) -> EncodeReport:  # fmt: skip
    """Writes the features of every image under its id: of a file, its path as it was given (with forward slashes).

    Bad images are reported and the others go on. A run that ends early goes on when it is called again with the same
    arguments: until all is done, `out` is what it was before, and `.NAME.encoding` beside it holds what is done.

    Args:
        images: a source, or files; a path given twice is encoded once.
        encoder: what encodes them.
        out: a .safetensors file, or a folder.
        form: what is written; by default a safetensors file of float32 (N, C).
        force: replace what stands at `out`, and drop an unfinished run of other arguments.
        batch_size: images per call; by default the artifact's own, 1 where it takes any number.
        workers: images that are decoded at the same time; by default as many as there are cores.
        progress: called as `encode` with the images done and their number, and told the pace in words.

    Warns with UnfinishedWarning if the run ends early and the next one goes on.

    Raises:
        ArtifactError: `out` exists and `force` is off, it cannot be written (a full disk, no permission), another run
            writes it, or an earlier run of other arguments is not finished.
        ConfigError: no images or a single path, a batch size under 1, or an impossible number of workers.
    """
    start = time.perf_counter()
    source: Source = images if isinstance(images, Source) else files(images)
    form = form or FeatureForm()
    if not len(source):
        raise ConfigError("no images given; name at least one image or folder")
    size = batch_size if batch_size is not None else encoder.batch[0]
    if size < 1:
        raise ConfigError(f"--batch-size must be at least 1; found {batch_size}")
    check_workers(workers)
    request = make_request(encoder.artifact, encoder.preprocessor, encoder.chosen.name, source, form)
    target = Target(out=Path(out), source=source, artifact=encoder.artifact.path, request=request, force=force)

    def work(working: WorkingFolder) -> Outcome:
        output = _opened(target, working)
        resumed = output.done
        whole = False
        with told_to_go_on(working):
            try:
                if output.done < len(source):
                    rest = source.part(output.done, len(source))
                    with BatchReader(rest, encoder.preprocessor, size, workers) as batches:
                        _encode(batches, encoder, output, form, len(source), progress)
                progress("encode", output.done, len(source))
                output.finish(force=force)
                whole = True
            finally:
                working.keep = not whole and (working.resumed or output.done > 0)
                output.close(flush=not whole)
        return Outcome(output.failures, resumed)

    return encode_into(target, work, start, encoder.chosen.why)


def _opened(target: Target, working: WorkingFolder) -> Output:
    """The output; begun anew if what an earlier run left is damaged and `force` is on."""
    try:
        return open_output(working, target.request, target.source)
    except ArtifactError:
        if not target.force or not working.resumed:
            raise
        working.restart(target.request)
        return open_output(working, target.request, target.source)


def files(paths: Iterable[str | os.PathLike[str]]) -> PathSource:
    """Image files as a source. A missing one is an image that cannot be read. Raises ConfigError for a single path."""
    if isinstance(paths, (str, os.PathLike)):
        raise ConfigError(f"images are a list of files, or a source; give [{os.fspath(paths)!r}] or open_source([...])")
    collected = PathCollector()
    for path in paths:
        file = Path(path)
        collected.add(str(file), look(file)[0])
    return collected.source([])


def _encode(
    batches: BatchReader, encoder: Encoder, output: Output, form: FeatureForm, total: int, progress: Progress
) -> None:
    done = output.done
    pace = Pace(done, total)
    progress("encode", done, total)
    with Writer(output, form) as writer:
        for batch in batches:
            features, reasons = _features(encoder, batch)
            writer.put(batch.ids, features, reasons)
            done += len(batch.ids)
            if isinstance(progress, NotedProgress):
                progress.note(pace.note(done, output.failures.count))
            progress("encode", done, total)


def _features(encoder: Encoder, batch: Batch) -> tuple[np.ndarray, list[str | None]]:
    """Features (B, N, C) of a batch's good images, and why the others have none."""
    if not len(batch.pixels):
        return np.zeros((0, *encoder.shape), np.float32), batch.reasons
    try:
        return encoder.run(batch.pixels), batch.reasons
    except MemoryError:
        why = f"not enough memory to encode {len(batch.pixels)} at once: use a smaller --batch-size"
        reasons: list[str | None] = [
            reason or f"{name}: {why}" for name, reason in zip(batch.ids, batch.reasons, strict=True)
        ]
        return np.zeros((0, *encoder.shape), np.float32), reasons
