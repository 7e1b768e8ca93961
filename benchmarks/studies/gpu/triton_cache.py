"""A Triton cache that was made elsewhere, copied to where a run looks for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def copy(source: Path, target: Path) -> None:
    """Copies a cache folder. Triton keeps absolute paths in it (`__grp__*.json`), which are made those of the copy."""
    shutil.copytree(source, target)
    for group in target.glob("*/__grp__*.json"):
        names = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
        paths = {name: str(group.parent / name) for name in names}
        group.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")
