"""pyarrow, which is an extra: imported on first use, with an error of one line if it is missing."""

from __future__ import annotations

from typing import Any

from ...core.errors import UnavailableError, first_line

INSTALL = 'pip install "fvexport[data]"'


def import_pyarrow() -> Any:
    """The module `pyarrow`, with `pyarrow.parquet` and `pyarrow.ipc` loaded.

    Raises UnavailableError if it is not installed, or its libraries do not load.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "pyarrow":
            raise
        raise UnavailableError(f"Parquet and Arrow files need pyarrow, which is not installed; `{INSTALL}`") from None
    except ImportError as error:
        raise UnavailableError(f"pyarrow does not load ({first_line(error)}); reinstall it: `{INSTALL}`") from None
    return pyarrow
