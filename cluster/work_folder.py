"""What a run on Ray has done: Ray's checkpoints and data files, made consistent after any interruption.

    .OUT.encoding/
        ray-000002/            of the last start; each start renames it, so that what still writes for an earlier one
                               finds nothing there
            data/              Parquet files, named after Ray's task
            checkpoint/        for each task, the ids in its files; `.pending` until these are complete
            complete           every image is in `data/`, which only needs its final names

Ray deletes data files whose checkpoint is pending when it starts. That is not enough: a write that Ray repeats after
its checkpoint was committed can be cut off in the middle of the file, and a worker that outlives its driver can add a
file without a checkpoint. So files and checkpoints are compared here before and after Ray runs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..core.errors import ArtifactError
from ..core.output_path import os_errors, put_folder
from ..export.features.existing import Failures, count_all, shard_form
from ..export.features.request import Request
from ..export.features.working_folder import WorkingFolder

DATA, CHECKPOINT, COMPLETE = "data", "checkpoint", "complete"
PENDING = ".pending.parquet"
_PIECE = re.compile(r"-\d+\.parquet\Z")
_START = re.compile(r"ray-(\d{6})\Z")


class WorkFolder:
    """The folder of Ray's files in the working folder of a run that starts now.

    Raises ArtifactError if it cannot be written.

    Attributes:
        out: the output.
        root: holds `data/` and `checkpoint/`.
    """

    def __init__(self, working: WorkingFolder, request: Request) -> None:
        self.out, home = working.out, working.path
        self._working, self._request = working, request
        with os_errors(self.out):
            starts = sorted(path for path in home.iterdir() if _START.fullmatch(path.name))
            # A worker of an ended driver may have made an earlier one anew.
            found = [path for path in starts if (path / CHECKPOINT).is_dir() or (path / COMPLETE).exists()]
            last = int(starts[-1].name[4:]) if starts else 0
            self.root = home / f"ray-{last + 1:06d}"
            if found:
                found[-1].rename(self.root)
            else:
                self.root.mkdir()
            for path in starts:
                shutil.rmtree(path, ignore_errors=True)
            if self.is_complete and working.placing and not self._is_whole():
                # The result was moved to the output; what is here now, if anything, was there before.
                shutil.rmtree(self.root)
                self.root.mkdir()
            if not self.is_complete:
                self.data.mkdir(exist_ok=True)
                self.checkpoint.mkdir(exist_ok=True)

    def _is_whole(self) -> bool:
        try:
            return self.data.is_dir() and count_all(shard_form(self._request), self.data, self._request, Failures())
        except ArtifactError:
            return False

    @property
    def data(self) -> Path:
        """The folder of data files."""
        return self.root / DATA

    @property
    def checkpoint(self) -> Path:
        """The folder of Ray's checkpoints."""
        return self.root / CHECKPOINT

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run was interrupted when it had every image."""
        return (self.root / COMPLETE).exists()

    def settle(self) -> int:
        """Removes data without a committed checkpoint, and checkpoints without all their data; returns images done."""
        import pyarrow.parquet as pq

        files: dict[str, list[Path]] = defaultdict(list)
        for file in self.data.iterdir():
            files[_PIECE.sub("", file.name)].append(file)
        done = 0
        seen = np.empty(0, np.uint64)
        with os_errors(self.out):
            for checkpoint in sorted(self.checkpoint.iterdir()):
                if checkpoint.name.endswith(PENDING):
                    checkpoint.unlink()
                    continue
                pieces = files.get(checkpoint.name.removesuffix(".parquet"), [])
                try:
                    ids = pq.read_table(checkpoint, columns=["id"]).column("id").to_pylist()
                    rows = sum(pq.read_metadata(file).num_rows for file in pieces)
                except Exception:  # cut off by a crash of the machine
                    ids, rows = [], -1
                keys = np.sort(np.fromiter((_key(one) for one in ids), np.uint64, len(ids)))
                if rows != len(ids) or len(np.unique(keys)) != len(keys) or _overlap(seen, keys):
                    checkpoint.unlink()
                    continue
                del files[checkpoint.name.removesuffix(".parquet")]
                seen = np.sort(np.concatenate([seen, keys]), kind="stable")
                done += rows
            for pieces in files.values():
                for file in pieces:
                    file.unlink()
        return done

    @property
    def has_any(self) -> bool:
        """Whether anything is done."""
        return self.is_complete or any(not file.name.endswith(PENDING) for file in self.checkpoint.iterdir())

    def finish(self, failures: Failures, *, force: bool) -> None:
        """Gives the data files their final names, adds their failures to `failures`, and moves them to `out`.

        Raises ArtifactError if something is at `out` that must not be replaced.
        """
        with os_errors(self.out):
            if not self.is_complete:
                for file in self.data.iterdir():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
                (self.root / COMPLETE).touch()
            names = sorted(file.name for file in self.data.iterdir())
            taken = {name for name in names if name.startswith("part-")}
            free = (name for number in range(len(names)) if (name := f"part-{number:05d}.parquet") not in taken)
            for name in names:
                if name not in taken:
                    (self.data / name).rename(self.data / next(free))
            form = shard_form(self._request)
            if not count_all(form, self.data, self._request, failures):
                raise ArtifactError(f"images are missing in {self.data}; begin again with --force (force=True)")
            self._working.mark_placing()
            put_folder(self.data, self.out, force=force, ours=form.is_ours)


def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _overlap(seen: np.ndarray, keys: np.ndarray) -> bool:
    """Whether two sorted arrays have a value in common."""
    if not len(seen):
        return False
    at = np.minimum(np.searchsorted(seen, keys), len(seen) - 1)
    return bool((seen[at] == keys).any())
