"""`run_on_ray`: a source of images -> a Parquet dataset, on as many workers as a Ray cluster has room for."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.allocator import keep_freed_memory
from ..core.errors import ConfigError, FvexportError, UnavailableError, first_line
from ..core.progress import Progress, silent
from ..encoder.preprocess import Preprocessor
from ..export.artifact import Artifact
from ..export.features.existing import Failures
from ..export.features.output_shards import WRITE_OPTIONS, row_group_rows
from ..export.features.request import Request
from ..export.features.run import EncodeReport, Outcome, Target, encode_into, told_to_go_on
from ..export.features.sources.source import Source
from ..export.features.table import features_schema
from ..export.features.working_folder import WorkingFolder
from .connection import connected, import_ray, nodes_of
from .counting import counter, reported
from .encode_images import EncodeImages
from .reading import enter, ray_source
from .shipping import ShippedArtifact, ship
from .work_folder import WorkFolder
from .workers import RayOptions, Workers, plan_workers

PASSES = 3
"""How often Ray is started for images that a lost node took along, before a run gives up."""
CALL_BYTES = 64 << 20
"""About how many bytes of features one call of a worker returns at most."""
CALL_ROWS = 32
TASK_ROWS = 4096
"""Images that one task of Ray reads, at most."""
FILTER_BYTES = 64 << 20
"""Memory that Ray reserves for the worker that leaves out finished images; its own 1 GiB may not fit."""


class _Worker(EncodeImages):
    """Counts what it encodes, and reads relative paths, and images as large, as the driver does."""

    def __init__(
        self, artifact: ShippedArtifact, count: Any, folder: str, max_pixels: int | None, **options: Any
    ) -> None:  # fmt: skip
        enter(folder)
        keep_freed_memory()
        Image.MAX_IMAGE_PIXELS = max_pixels
        self._problem: FvexportError | None = None
        try:
            super().__init__(artifact, **options)
        except FvexportError as error:  # from here, Ray would begin again and print it each time
            self._problem = error
        self._count, self._counted = count, 0

    def __call__(self, batch: Any) -> Any:
        if self._problem is not None:
            raise self._problem
        self._counted = 0
        result = super().__call__(batch)
        self._count.add.remote(batch.num_rows - self._counted, result.column("features").null_count)
        return result

    def _encode(
        self, rows: list[int], pixels: list[np.ndarray], features: np.ndarray, errors: list[str | None]
    ) -> None:
        super()._encode(rows, pixels, features, errors)
        self._count.add.remote(len(rows), 0)
        self._counted += len(rows)


def run_on_ray(
    source: Source, artifact: Path, request: Request, out: Path, options: RayOptions | None = None,
    progress: Progress = silent, *, force: bool = False,
) -> EncodeReport:  # fmt: skip
    """Encodes a source into the Parquet dataset `out`, and goes on where an earlier run was interrupted.

    The work is done in `.OUT.encoding` beside `out`, and `out` appears when every image is done. All nodes must see
    that folder, and the images, under the same path. The order of the rows is not that of the source.

    Args:
        source: the images.
        artifact: its folder, on this machine; nodes that do not have it get it from here.
        request: what is written; an interrupted run with another one is not continued.
        out: the folder to write.
        options: how Ray is used.
        progress: called as `encode` with the images done.
        force: replace a dataset at `out`, and drop an interrupted run with another request.

    Raises:
        ArtifactError: `out` exists or cannot be written, another run writes it or was interrupted with another request,
            or the artifact cannot be used.
        ConfigError: the request is of another format than Parquet.
        UnavailableError: Ray is missing, no cluster answers, it lacks what the options ask for, or a worker cannot
            run the artifact.
    """
    options = options or RayOptions()
    if request.form != "parquet":
        raise ConfigError(f"--engine ray writes Parquet alone; use --format parquet (found {request.form})")
    start = time.perf_counter()
    opened = Artifact.open(artifact)
    target = Target(out=out, source=source, artifact=opened.path, request=request, force=force)

    def run(working: WorkingFolder) -> Outcome:
        import_ray()
        work = WorkFolder(working, request)
        resumed, failures = len(source), Failures()
        with told_to_go_on(working):
            try:
                if not work.is_complete:
                    with connected(options.address, verbose=options.verbose) as ray:
                        workers = plan_workers(nodes_of(ray), options)
                        resumed = _run_all(ray, source, opened, request, work, (workers, options), progress)
                work.finish(failures, force=force)
            except BaseException:
                working.keep = work.has_any
                raise
        working.keep = False
        progress("encode", len(source), len(source))
        return Outcome(failures, resumed)

    return encode_into(target, run, start)


def _run_all(
    ray: Any, source: Source, artifact: Artifact, request: Request, work: WorkFolder,
    plan: tuple[Workers, RayOptions], progress: Progress,
) -> int:  # fmt: skip
    """Has Ray encode what is not done yet, and again what was lost on the way; returns images that were done before."""
    resumed = done = work.settle()
    shipped: ShippedArtifact | None = None
    for _ in range(PASSES):
        if done == len(source):
            return resumed
        shipped = shipped or ship(artifact)
        with _quiet(ray, plan[1].verbose):
            _run_once(ray, source, shipped, request, work, plan, (progress, done))
        done = work.settle()
    if done != len(source):
        raise UnavailableError(
            f"Ray lost images in each of {PASSES} passes ({done} of {len(source)} are done); run the command again to "
            "go on"
        )
    return resumed


def _run_once(
    ray: Any, source: Source, artifact: ShippedArtifact, request: Request, work: WorkFolder,
    plan: tuple[Workers, RayOptions], report: tuple[Progress, int],
) -> None:  # fmt: skip
    """Encodes the images that are not done yet."""
    from ray.data import ActorPoolStrategy
    from ray.data.checkpoint import CheckpointConfig

    (workers, options), (progress, done) = plan, report
    rows = _call_rows(source, request, workers, options.batch_size or 1)
    folder = os.fspath(Path.cwd())
    count = counter(ray)
    task_rows = max(rows, min(TASK_ROWS, -(-len(source) // (4 * workers.count))))
    images = ray.data.read_datasource(
        ray_source(source, block_rows=rows, task_rows=task_rows, folder=folder),
        num_cpus=0,
        concurrency=2 * workers.count,
    )
    checkpoints = CheckpointConfig("id", os.fspath(work.checkpoint), delete_checkpoint_on_success=False)
    checkpoints.checkpoint_actor_memory_bytes = FILTER_BYTES
    images.context.checkpoint_config = checkpoints
    images.context.enable_progress_bars = options.verbose
    size = Preprocessor.from_dict(request.preprocessing)
    features = images.map_batches(
        _Worker,
        fn_constructor_args=(artifact, count, folder, Image.MAX_IMAGE_PIXELS),
        fn_constructor_kwargs={
            "column": "image", "pool": request.pool, "dtype": request.dtype, "backend": request.backend,
            "resolution": (size.height, size.width), "batch_size": options.batch_size, "threads": options.threads,
        },
        batch_size=rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=workers.count, initial_size=workers.count),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
    )  # fmt: skip
    with reported(ray, count, progress, done, len(source)):
        try:
            features.write_parquet(
                os.fspath(work.data),
                min_rows_per_file=request.shard_rows,
                ray_remote_args={"num_cpus": 0},
                row_group_size=row_group_rows(request),
                schema=features_schema(request),
                **WRITE_OPTIONS,
            )
        except FvexportError:
            raise
        except Exception as error:
            raise _explained(error) from error


def _call_rows(source: Source, request: Request, workers: Workers, batch_size: int) -> int:
    """Images in one call of a worker: some batches of the encoder, and few where there are few in all."""
    share = -(-len(source) // (8 * workers.count))
    rows = max(1, min(CALL_ROWS, CALL_BYTES // request.row_bytes, share))
    return -(-rows // batch_size) * batch_size


_CAUSE = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Invalid): .+", re.MULTILINE)
_OURS = re.compile(r"fvexport\.core\.errors\.(\w+): (.+)")


def _explained(error: Exception) -> FvexportError:
    """What a worker's error says, in one line: Ray hands on tracebacks as text."""
    text = str(error)
    if found := _OURS.findall(text):
        return UnavailableError(f"a worker cannot go on: {found[-1][1]}")
    causes = [found[0] for found in _CAUSE.finditer(text) if not found[0].startswith("ray.")]
    reason = causes[0][:300] if causes else first_line(error)
    return UnavailableError(f"Ray ended the run ({reason}); run the command again to go on")


@contextlib.contextmanager
def _quiet(ray: Any, verbose: bool) -> Iterator[None]:
    """Keeps Ray Data's log off the terminal, which it would share with the progress bar."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    ray.data.DataContext.get_current()  # has the loggers configured
    if not verbose:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
