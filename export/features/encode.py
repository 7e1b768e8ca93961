"""Many images -> one safetensors file, in memory that does not grow with their number.

The format wants its header, which names every tensor, before the data. All features of one run have one shape, so
the space that the header can need is known at once: it is reserved, the features follow as they come, and the
header is written last, filled up with spaces. Source: the format's description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ... import __version__
from ...core.errors import ArtifactError, ConfigError, ImageError
from ...core.output_path import check_file, os_errors, put_file, scratch_beside
from ...core.phrases import printable
from ...core.progress import Progress, silent
from ..runtime.encoder import Encoder

METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000
"""Readers of safetensors refuse a longer header."""


@dataclass(frozen=True)
class EncodeReport:
    """What `encode_images` did.

    Attributes:
        out: the file; it was not written where `encoded` is 0.
        encoded: images whose features are in it.
        failed: (image, reason) of the others.
        seconds: for all of it.
        shape: (tokens, channels) of one image's features.
        backend: what ran the artifact.
        backend_why: why `auto` took it; empty if it was named.
    """

    out: Path
    encoded: int
    failed: list[tuple[str, str]]
    seconds: float
    shape: tuple[int, int]
    backend: str
    backend_why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        failed = [{"image": name, "reason": reason} for name, reason in self.failed]
        return asdict(self) | {"out": str(self.out), "failed": failed, "shape": list(self.shape)}


def encode_images(
    images: Iterable[Path], encoder: Encoder, out: Path, *, force: bool = False, batch_size: int | None = None,
    progress: Progress = silent,
) -> EncodeReport:  # fmt: skip
    """Writes the features of every image, each (N, C) float32, under its path as it was given (with forward slashes).

    Bad images are reported and the others go on; a path given twice is encoded once. Memory holds one batch and the
    paths. Killed at any moment, `out` is what it was before, or complete.

    Args:
        images: files.
        encoder: what encodes them.
        out: the .safetensors file.
        force: replace a file that stands at `out`.
        batch_size: images per call; by default the artifact's own, 1 where it takes any number.
        progress: called as `encode` with the images done.

    Raises:
        ArtifactError: `out` exists and `force` is off, or it cannot be written (a full disk, no permission).
        ConfigError: no images, or a batch size under 1.
    """
    start = time.perf_counter()
    paths = {_key(path): path for path in images}
    if not paths:
        raise ConfigError("no images given; name at least one image or folder")
    size = batch_size if batch_size is not None else encoder.batch[0]
    if size < 1:
        raise ConfigError(f"--batch-size must be at least 1; found {batch_size}")
    file = _FeatureFile(out, list(paths), encoder.shape, _metadata(encoder), force=force)
    check_file(out, force=force, need_bytes=file.bytes_needed)
    if any(path.exists() and out.exists() and path.samefile(out) for path in paths.values()):
        raise ArtifactError(f"{out} is one of the images; choose another --out")

    failed: list[tuple[str, str]] = []
    with file:
        waiting: list[tuple[str, np.ndarray]] = []
        for done, (key, path) in enumerate(paths.items()):
            progress("encode", done, len(paths))
            try:
                if key == METADATA:
                    raise ImageError(f"{key} is a name that safetensors keeps for itself: rename the image")
                waiting.append((key, encoder.preprocessor.pixels(path)))
            except ImageError as error:
                failed.append((key, printable(str(error))))
            if waiting and (len(waiting) == size or done == len(paths) - 1):
                try:
                    features = encoder.run(np.stack([pixels for _, pixels in waiting]))
                except MemoryError:
                    reason = f"not enough memory to encode {len(waiting)} at once: use a smaller --batch-size"
                    failed += [(name, f"{name}: {reason}") for name, _ in waiting]
                    waiting.clear()
                for (name, _), one in zip(waiting, features if waiting else (), strict=True):
                    if np.isfinite(one).all():
                        file.append(name, one)
                    else:
                        failed.append((name, f"{name} has infinite or undefined features: encode it with an fp32 file"))
                waiting.clear()
        progress("encode", len(paths), len(paths))
    chosen = encoder.chosen
    return EncodeReport(
        out, len(file.names), failed, time.perf_counter() - start, encoder.shape, chosen.name, chosen.why
    )


class _FeatureFile:
    """A safetensors file that grows beside `out` and takes its place when the block ends well.

    Nothing is created before the first features.
    """

    def __init__(
        self, out: Path, names: list[str], shape: tuple[int, int], metadata: dict[str, str], *, force: bool
    ) -> None:
        self.out = out
        self.force = force
        self.shape = shape
        self.metadata = metadata
        self.each = shape[0] * shape[1] * 4
        self.names: list[str] = []
        longest = len(self._header(names))
        if longest > MAX_HEADER_BYTES:
            raise ConfigError(
                f"the names of {len(names)} images need a header of {longest / 1e6:.0f} MB, "
                f"and safetensors allows {MAX_HEADER_BYTES / 1e6:.0f}; encode them in several files"
            )
        self.reserved = -(-longest // 8) * 8
        self.bytes_needed = 8 + self.reserved + len(names) * self.each
        self._held = contextlib.ExitStack()
        self._scratch: Path | None = None
        self._stream: BinaryIO | None = None

    def _header(self, names: list[str]) -> bytes:
        content: dict[str, Any] = {METADATA: self.metadata}
        for index, name in enumerate(names):
            offsets = [index * self.each, (index + 1) * self.each]
            content[name] = {"dtype": "F32", "shape": list(self.shape), "data_offsets": offsets}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    def append(self, name: str, features: np.ndarray) -> None:
        """Writes one image's features (N, C)."""
        assert features.shape == self.shape
        with os_errors(self.out):
            if self._stream is None:
                self._scratch = self._held.enter_context(scratch_beside(self.out))
                self._stream = self._scratch.open("wb")
                self._stream.seek(8 + self.reserved)
            self._stream.write(features.astype("<f4", copy=False).tobytes())
        self.names.append(name)

    def __enter__(self) -> _FeatureFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._held:
            if self._stream is None or self._scratch is None:
                return
            try:
                if kind is None:
                    with os_errors(self.out):
                        self._finish(self._stream, self._scratch)
            finally:
                # A full disk makes close fail once more, when it flushes what is left.
                with contextlib.suppress(OSError):
                    self._stream.close()

    def _finish(self, stream: BinaryIO, scratch: Path) -> None:
        stream.seek(0)
        stream.write(self.reserved.to_bytes(8, "little") + self._header(self.names).ljust(self.reserved))
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        put_file(scratch, self.out, force=self.force)


def _key(path: Path) -> str:
    return printable(Path(path).as_posix())


def _metadata(encoder: Encoder) -> dict[str, str]:
    manifest, frame = encoder.artifact.manifest, encoder.preprocessor
    return {
        "artifact_sha256": manifest.files[encoder.artifact.model_path.name].sha256,
        "checkpoint_sha256": manifest.checkpoint.sha256,
        "resolution": f"{frame.height}x{frame.width}",
        "backend": encoder.chosen.name,
        "fvexport": __version__,
    }
