"""`fvexport encode`: images become features in one safetensors file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import printing
from .option_groups import group
from .options import RESOLUTION, backend_option, json_option, max_pixels_option, threads_option, verbose_option

if TYPE_CHECKING:
    from ..export.features import EncodeReport


@dataclass(frozen=True, kw_only=True)
class Running:
    """How the artifact is run; see `Encoder` and `encode_images`."""

    res: tuple[int, int] | None
    backend: str
    batch_size: int | None
    threads: int | None


@click.command("encode")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--artifact",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Artifact that encodes the images.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", required=True, help="The .safetensors file to write."
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
)
@click.option("--force", is_flag=True, help="Overwrite an existing file at --out.")
@max_pixels_option
@json_option
@verbose_option
def encode(images: tuple[Path, ...], artifact: Path, out: Path, running: Running, force: bool, as_json: bool) -> None:
    """Encode images and folders of images into one .safetensors file.

    The file has each image's features (tokens, channels) under the image's path. A bad image is reported and
    skipped; the exit code is then 1.
    """
    from ..core.errors import ImageWarning
    from ..encoder.image import Found, search_images
    from ..export.features import encode_images
    from ..export.runtime import Encoder
    from .progress_bar import progress_bar

    # Only folders are searched here: a missing file is a bad image, and the others are encoded.
    found = Found()
    for path in images:
        found.add(search_images([path]) if path.is_dir() else Found([path]))
    if notice := found.notice():
        warnings.warn(notice, ImageWarning, stacklevel=1)
    with progress_bar() as progress:
        encoder = Encoder(artifact, running.backend, resolution=running.res, threads=running.threads)
        report = encode_images(found.files, encoder, out, force=force, batch_size=running.batch_size, progress=progress)
    if as_json:
        printing.print_json(report.to_dict())
    else:
        encode_report(report)
    for _, reason in report.failed:
        printing.error(reason)
    if report.failed:
        written = f"{out} has the other {report.encoded}" if report.encoded else "nothing was written"
        printing.error(f"{len(report.failed)} of {len(report.failed) + report.encoded} images failed; {written}")
        click.get_current_context().exit(1)


def encode_report(report: EncodeReport) -> None:
    """What was written; failures go to stderr, one line each."""
    if report.encoded:
        tokens, channels = report.shape
        printing.facts(
            [
                ("images", report.encoded),
                ("features", f"float32 ({tokens}, {channels}) each, named after the image's path"),
                ("backend", f"{report.backend} ({report.backend_why})" if report.backend_why else report.backend),
                ("seconds", f"{report.seconds:.1f} ({report.encoded / max(report.seconds, 1e-9):.1f} images/s)"),
                ("file", report.out),
            ]
        )
