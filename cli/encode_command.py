"""`fvexport encode`: images become features in a file or a dataset."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..export.features.feature_form import DType, Engine, FeatureForm, Form, Pool
from . import printing
from .option_groups import group, refuse_given
from .options import (
    RESOLUTION,
    backend_option,
    is_verbose,
    json_option,
    max_pixels_option,
    threads_option,
    verbose_option,
)  # fmt: skip

if TYPE_CHECKING:
    from ..cluster import RayOptions
    from ..export.features import EncodeReport

MOST_ERRORS = 50
"""How many images that failed are named, one line each."""
NOTHING = {form: "nothing was written" if form == "safetensors" else "there are no features" for form in get_args(Form)}
"""What is said where all failed."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """How the artifact is run; see `Encoder` and `encode_images`."""

    res: tuple[int, int] | None
    backend: str
    batch_size: int | None
    threads: int | None
    workers: int | None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Who spreads the work; see `RayOptions`."""

    engine: Engine
    ray_address: str | None
    concurrency: int | None
    gpus_per_worker: float | None


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is written, and where; see `FeatureForm`."""

    out: Path
    form: Form | None
    pool: Pool
    dtype: DType
    shard_rows: int | None
    force: bool

    def form_for(self, engine: Engine) -> FeatureForm:
        """The form, by the name of `out` and the engine if it was not given."""
        parquet = engine == "ray" or self.out.suffix == ".parquet"
        return FeatureForm(
            form=self.form or ("parquet" if parquet else "safetensors"),
            pool=self.pool,
            dtype=self.dtype,
            shard_rows=self.shard_rows,
        )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of tables; see `SourceOptions`."""

    image_column: str | None
    id_column: str | None


@click.command("encode")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--artifact",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Artifact that encodes the images.",
)
@group(
    "target",
    Target,
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="PATH",
        required=True,
        help="The .safetensors file or the folder to write.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(get_args(Form)),
        help="A file, or a folder of shards.  [default: parquet if --out ends so or with Ray, safetensors otherwise]",
    ),
    click.option(
        "--pool",
        type=click.Choice(get_args(Pool)),
        default="none",
        show_default=True,
        help="Average an image's tokens.",
    ),
    click.option(
        "--dtype", type=click.Choice(get_args(DType)), default="float32", show_default=True, help="Of the features."
    ),
    click.option(
        "--shard-rows", type=int, metavar="N", help="Images in each file of a folder.  [default: about 256 MB]"
    ),
    click.option("--force", is_flag=True, help="Overwrite what is at --out; drop an unfinished run of other options."),
)
@group(
    "columns",
    Columns,
    click.option(
        "--image-column", metavar="NAME", help="Of a table: has the images, or their paths.  [default: it is found]"
    ),
    click.option("--id-column", metavar="NAME", help="Of a table: has the ids.  [default: FILE#ROW]"),
)
@group(
    "running",
    Running,
    click.option(
        "--res",
        type=RESOLUTION,
        metavar="1024|HxW",
        help="For an artifact with dynamic resolution.  [default: its own]",
    ),
    backend_option,
    click.option("--batch-size", type=int, metavar="N", help="Images per call.  [default: the artifact's own, or 1]"),
    threads_option,
    click.option("--workers", type=int, metavar="N", help="Images decoded at the same time.  [default: all cores]"),
)
@group(
    "cluster",
    Cluster,
    click.option(
        "--engine",
        type=click.Choice(get_args(Engine)),
        default="local",
        show_default=True,
        help="This process, or Ray Data on this machine or a cluster.",
    ),
    click.option("--ray-address", metavar="HOST:PORT", help="A running cluster; auto for this node's."),
    click.option("--concurrency", type=int, metavar="N", help="Ray's workers.  [default: one per GPU, or per node]"),
    click.option("--gpus-per-worker", type=float, metavar="F", help="Such as 0.5.  [default: 1 if there are GPUs]"),
)
@max_pixels_option
@json_option
@verbose_option
def encode(
    images: tuple[str, ...], artifact: Path, target: Target, columns: Columns, running: Running, cluster: Cluster,
    as_json: bool,
) -> None:  # fmt: skip
    """Encode images into one .safetensors file, or a dataset of Parquet or NumPy files.

    IMAGE is an image, a folder, a list of paths (@list.txt, or - for stdin), a table (Parquet, Arrow), or a WebDataset
    (.tar files). Each image's features (tokens, channels) stand under its path, row or key. A bad image is reported and
    skipped; the exit code is then 1. If the command is interrupted, the same command goes on.
    """
    from ..cluster import encode_on_ray
    from ..core.allocator import keep_freed_memory
    from ..export.features import encode_images
    from ..export.features.sources.open_source import SourceOptions, open_source
    from ..export.runtime import Encoder
    from .progress_bar import progress_bar

    if cluster.engine != "ray":
        refuse_given(("ray_address", "concurrency", "gpus_per_worker"), "has no effect without --engine ray")
    form = target.form_for(cluster.engine)
    keep_freed_memory()
    with progress_bar() as progress:
        options = SourceOptions(image_column=columns.image_column, id_column=columns.id_column)
        source = open_source(images, options, sys.stdin.buffer if sys.stdin else None, leave_out=target.out)
        if cluster.engine == "ray":
            refuse_given(("workers",), "has no effect with --engine ray: a worker decodes with the CPUs that it has")
            report = encode_on_ray(
                source, artifact, target.out, form, _ray_options(running, cluster), force=target.force,
                progress=progress,
            )  # fmt: skip
        else:
            encoder = Encoder(artifact, running.backend, resolution=running.res, threads=running.threads)
            report = encode_images(
                source, encoder, target.out, form=form, force=target.force, batch_size=running.batch_size,
                workers=running.workers, progress=progress,
            )  # fmt: skip
    if as_json:
        printing.print_json(report.to_dict())
    else:
        encode_report(report)
    _failures(report)


def _ray_options(running: Running, cluster: Cluster) -> RayOptions:
    from ..cluster import RayOptions

    return RayOptions(
        address=cluster.ray_address,
        concurrency=cluster.concurrency,
        gpus_per_worker=cluster.gpus_per_worker,
        batch_size=running.batch_size,
        threads=running.threads,
        backend=running.backend,
        resolution=running.res,
        verbose=is_verbose(click.get_current_context()),
    )


def _failures(report: EncodeReport) -> None:
    """The failures on stderr, one line each; ends the command with exit code 1 if there are any."""
    if not report.failed_count:
        return
    for _, reason in report.failed[:MOST_ERRORS]:
        printing.error(reason)
    total, rest = report.failed_count + report.encoded, report.failed_count - len(report.failed[:MOST_ERRORS])
    places = {"safetensors": "--json lists them", "npy": "folder errors has them", "parquet": "column error has them"}
    more = f" ({rest} are not shown; {places[report.form]})" if rest else ""
    written = f"{report.out} has the other {report.encoded}" if report.encoded else NOTHING[report.form]
    printing.error(f"{report.failed_count} of {total} images failed{more}; {written}")
    click.get_current_context().exit(1)


def encode_report(report: EncodeReport) -> None:
    """What was written."""
    new = report.encoded + report.failed_count - report.resumed
    if not report.encoded and report.form == "safetensors":
        return
    rows: list[tuple[str, Any]] = [("images", report.encoded)]
    if report.resumed:
        rows.append(("of an earlier run", report.resumed))
    shape = ", ".join(map(str, report.shape))
    rows += [
        ("features", f"{report.dtype} ({shape}{',' if len(report.shape) == 1 else ''}) each, by the image's id"),
        ("backend", f"{report.backend} ({report.backend_why})" if report.backend_why else report.backend),
        ("seconds", f"{report.seconds:.1f} ({new / max(report.seconds, 1e-9):.1f} images/s)"),
        ("file" if report.form == "safetensors" else "folder", report.out),
    ]
    printing.facts(rows)
