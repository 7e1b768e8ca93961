"""Whether temporary files can be written, checked before work that needs them."""

from __future__ import annotations

import tempfile

from .errors import UnavailableError


def check_temporary_folder() -> None:
    """Raises UnavailableError if no folder takes temporary files, as in a container with a read-only root.

    PyTorch's exporter and compiler and transformers need one, whatever they write.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UnavailableError(
            "no folder takes temporary files (tried TMPDIR, /tmp, /var/tmp and the current one); set TMPDIR to a "
            "folder that can be written, or mount one (`docker run --tmpfs /tmp`)"
        ) from None
