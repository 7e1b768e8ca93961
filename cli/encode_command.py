"""`fvexport encode`: images become features in one safetensors file."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from .options import Resolution, backend_option, json_option, max_pixels_option, verbose_option


@click.command("encode")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--artifact", type=click.Path(path_type=Path), metavar="DIR", required=True, help="What encodes them.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", required=True, help="The .safetensors file to write."
)
@click.option(
    "--res", type=Resolution(), metavar="1024|HxW", help="For an artifact with dynamic resolution.  [default: its own]"
)
@backend_option
@click.option("--batch-size", type=int, metavar="N", help="Images per call.  [default: the artifact's own, or 1]")
@click.option("--force", is_flag=True, help="Replace a file that stands at --out.")
@max_pixels_option
@json_option
@verbose_option
def encode(
    images: tuple[Path, ...], artifact: Path, out: Path, res: tuple[int, int] | None, backend: str,
    batch_size: int | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Encode images and folders of images into one .safetensors file.

    Each image's features (tokens, channels) stand under its path. A bad image is reported and the others go on; the
    exit code is then 1.
    """
    from ..core.errors import ImageWarning
    from ..encoder.image import Found, search_images
    from ..export.features import encode_images
    from ..export.runtime import Encoder
    from . import render
    from .progress_bar import progress_bar

    # Only folders are looked through here: a file that is missing is a bad image, and the others go on.
    found = Found()
    for path in images:
        found.add(search_images([path]) if path.is_dir() else Found([path]))
    if notice := found.notice():
        warnings.warn(notice, ImageWarning, stacklevel=1)
    with progress_bar() as progress:
        encoder = Encoder(artifact, backend, resolution=res)
        report = encode_images(found.files, encoder, out, force=force, batch_size=batch_size, progress=progress)
    if as_json:
        render.print_json(report.to_dict())
    else:
        render.encode_report(report)
    for _, reason in report.failed:
        render.error(reason)
    if report.failed:
        written = f"{out} holds the other {report.encoded}" if report.encoded else "nothing was written"
        render.error(f"{len(report.failed)} of {len(report.failed) + report.encoded} images failed; {written}")
        click.get_current_context().exit(1)
