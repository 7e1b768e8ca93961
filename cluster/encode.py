"""`encode_on_ray`: `encode_images` on a Ray cluster."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..core.errors import ConfigError
from ..core.progress import Progress, silent
from ..export.artifact import Artifact
from ..export.export_options import AUTO
from ..export.features.encode import EncodeReport, report_of
from ..export.features.feature_form import FeatureForm
from ..export.features.output import Failures, count_all, finished, shard_form
from ..export.features.request import make_request
from ..export.features.source import Source
from ..export.features.working_folder import WorkingFolder
from ..export.runtime.encoder import preprocessor_of
from .run import run_on_ray
from .workers import RayOptions


def encode_on_ray(
    source: Source, artifact: str | os.PathLike[str], out: str | os.PathLike[str], form: FeatureForm,
    options: RayOptions | None = None, *, backend: str = AUTO, resolution: tuple[int, int] | None = None,
    force: bool = False, progress: Progress = silent,
) -> EncodeReport:  # fmt: skip
    """Writes the features of every image of a source into a Parquet dataset, as `encode_images` does.

    Args:
        source: the images, which all nodes must see.
        artifact: its folder on this machine.
        out: the folder to write, which all nodes must see too.
        form: what is written.
        options: how Ray is used.
        backend: as `Encoder` takes it; `auto` is what is fastest on each worker's node.
        resolution: (height, width), for artifacts with dynamic resolution.
        force: replace a dataset at `out`, and drop an unfinished run of other arguments.
        progress: called as `encode` with the images done and their number.

    Raises what `encode_images` and `run_on_ray` raise.
    """
    start = time.perf_counter()
    out, opened = Path(out), Artifact.open(artifact)
    if not len(source):
        raise ConfigError("no images given; name at least one image or folder")
    if form.form != "parquet":
        raise ConfigError(f"--engine ray writes Parquet alone; use --format parquet (found {form.form})")
    request = make_request(opened, preprocessor_of(opened, resolution), backend, source, form, "ray")
    working = WorkingFolder(out)
    if not force and working.unfinished() is None and (failures := finished(out, request, source)) is not None:
        return report_of(request, out, failures, resumed=len(source), start=start)
    run_on_ray(source, opened.path, request, out, options, progress, force=force)
    failures = Failures()
    count_all(shard_form(request), out, request, failures)
    return report_of(request, out, failures, resumed=0, start=start)
