"""Results as JSON lines: each row is in the file as soon as it is measured, and is not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ....core.errors import ConfigError
from ....core.output_path import os_errors
from ...json_lines import append_lines, complete_rows


class RowFile:
    """Rows as JSON lines in a file, each written at once; without a file in memory.

    Args:
        path: of the file, or None. Rows that it has are read.
        environment: the first line; rows of another GPU, other versions or other kernels are no rows of this file.

    Raises ConfigError for a file of another environment.
    """

    def __init__(self, path: Path | None, environment: dict[str, Any]) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        if path is not None:
            with os_errors(path):
                self.rows += complete_rows(path)
        known = next((row for row in self.rows if row.get("kind") == "environment"), None)
        if known is None:
            self.add({"kind": "environment"} | environment)
            return
        for name in ("gpu", "versions", "kernels"):
            if known.get(name) != environment.get(name):
                raise ConfigError(f"{path} was measured with another {name}; give another --out, or delete it")

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        self.rows.append(row)
        if self.path is not None:
            with os_errors(self.path):
                append_lines(self.path, [json.dumps(row)], begins='{"kind": "environment"')

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a row has all of `key`'s values."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)
