"""`encode_on_ray`: `encode_images` on a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import ConfigError
from ..core.progress import Progress, silent
from ..export.artifact import Artifact
from ..export.features.feature_form import FeatureForm
from ..export.features.request import make_request
from ..export.features.run import EncodeReport
from ..export.features.sources.source import Source
from ..export.runtime.encoder import preprocessor_of
from .run import run_on_ray
from .workers import RayOptions


def encode_on_ray(
    source: Source, artifact: str | os.PathLike[str], out: str | os.PathLike[str], form: FeatureForm,
    options: RayOptions | None = None, *, force: bool = False, progress: Progress = silent,
) -> EncodeReport:  # fmt: skip
    """Writes the features of every image of a source into a Parquet dataset, as `encode_images` does.

    Args:
        source: the images, which all nodes must see.
        artifact: its folder on this machine.
        out: the folder to write, which all nodes must see too.
        form: what is written.
        options: how Ray is used.
        force: replace a dataset at `out`, and drop an unfinished run of other arguments.
        progress: called as `encode` with the images done and their number.

    Raises what `encode_images` and `run_on_ray` raise.
    """
    opened = Artifact.open(artifact)
    if not len(source):
        raise ConfigError("no images given; name at least one image or folder")
    options = options or RayOptions()
    preprocessor = preprocessor_of(opened, options.resolution)
    request = make_request(opened, preprocessor, options.backend, source, form, "ray")
    return run_on_ray(source, opened.path, request, Path(out), options, progress, force=force)
