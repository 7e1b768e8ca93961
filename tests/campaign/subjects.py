"""The commands under attack: how each is called, and whether what it left is whole.

A result is `absent`, `old` (the one that was there before), `new`, or, where rows are added one by one, `partial`.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inputs
from cases import Failed, expect
from commands import WHOLE, Ended, Place, run, warm_up_by


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed.

    Attributes:
        seconds: how long it took.
        operations: file operations that it did in its folders.
        place: its folders.
    """

    seconds: float
    operations: int
    place: Place


class Subject(ABC):
    """A command, and its result in `place.work`."""

    name: str
    target: str
    resumes = False
    """A second run adds to the result of the first, and needs no --force."""
    finished_by_another = False
    """A run that finds the whole result of the same command has nothing to do, and succeeds."""

    @abstractmethod
    def argv(self) -> list[object]:
        """Arguments, without --force."""

    def again(self, place: Place) -> list[object]:
        """Arguments of a run that may meet a result of an earlier one."""
        exists = (place.work / self.target).exists() and not self.resumes
        return [*self.argv(), *(["--force"] if exists else [])]

    def put_old(self, place: Place) -> None:
        """Puts an older result there."""

    @abstractmethod
    def state(self, place: Place) -> str:
        """What is there; raises Failed if it is not whole."""

    @abstractmethod
    def check_done(self, place: Place) -> None:
        """Raises Failed unless the result is complete and right."""

    def names(self, place: Place) -> set[str]:
        """The names in the working folder of the result that is there."""
        return {self.target} if (place.work / self.target).exists() else set()

    def check_no_leftovers(self, place: Place) -> None:
        """Raises Failed if anything but the result is in the working folder."""
        rest = place.listing() - self.names(place)
        expect(not rest, f"left behind beside the result: {sorted(rest)}")

    def kept(self, place: Place) -> Any:
        """What must not be lost when the command goes on; compared by `check_kept`."""
        return None

    def check_kept(self, before: Any, place: Place) -> None:
        """Raises Failed if something of `before` is gone."""

    @functools.cached_property
    def reference(self) -> Reference:
        """A run that nothing disturbed, made once; `prepare` makes it before cases fork."""
        place = Place(inputs.FOLDER / f"reference-{self.name}").make()
        ended, seconds = _timed(self.argv(), place)
        ended.check_success()
        warm_up_by(place)
        return Reference(seconds, ended.operations, place)

    def prepare(self) -> None:
        """Makes everything that cases of this command share."""
        self.check_done(self.reference.place)
        self.check_no_leftovers(self.reference.place)


def _timed(argv: list[object], place: Place) -> tuple[Ended, float]:
    started = time.monotonic()
    ended = run(argv, place, tag=WHOLE, seconds=300)
    return ended, time.monotonic() - started


class Export(Subject):
    """A command that writes an artifact."""

    target = "out"

    def __init__(self, name: str, *arguments: object) -> None:
        self.name, self.arguments = name, arguments

    def argv(self) -> list[object]:
        checkpoint = ("--checkpoint", inputs.GOLDEN / "timm_tiny")
        return [*self.arguments, *checkpoint, *inputs.RES, "--out", self.target]

    def put_old(self, place: Place) -> None:
        shutil.copytree(inputs.artifact("old"), place.work / self.target)

    def state(self, place: Place) -> str:
        from fvexport.core.errors import FvexportError
        from fvexport.export.artifact import Artifact

        path = place.work / self.target
        if not path.exists():
            return "absent"
        try:
            manifest = Artifact.open(path, verify=True).manifest
        except FvexportError as error:
            raise Failed(f"the artifact is not whole: {error}") from None
        return "old" if manifest.checkpoint.source.startswith("seeded") else "new"

    def check_done(self, place: Place) -> None:
        expect(self.state(place) == "new", f"the artifact is {self.state(place)} after a whole run")

    def prepare(self) -> None:
        inputs.artifact("old")
        super().prepare()


class Encode(Subject):
    """`fvexport encode`."""

    name, target = "encode", "features.safetensors"
    finished_by_another = True
    working = ".features.safetensors.encoding"
    """From which the next run goes on."""

    def argv(self) -> list[object]:
        return ["encode", *inputs.photos(), "--artifact", inputs.artifact("new"), "--out", self.target]

    @staticmethod
    @functools.cache
    def _old() -> bytes:
        place = Place(inputs.FOLDER / "old-features").make()
        argv = ["encode", inputs.photos()[0], "--artifact", inputs.artifact("new"), "--out", "old.safetensors"]
        run(argv, place).check_success()
        return (place.work / "old.safetensors").read_bytes()

    def names(self, place: Place) -> set[str]:
        kept = {self.working} if (place.work / self.working / "run.json").exists() else set()
        return super().names(place) | kept

    def put_old(self, place: Place) -> None:
        (place.work / self.target).write_bytes(self._old())

    def state(self, place: Place) -> str:
        path = place.work / self.target
        return "absent" if not path.exists() else "old" if len(_features(path)) == 1 else "new"

    def check_done(self, place: Place) -> None:
        import numpy as np

        expect(not (place.work / self.working).exists(), "the working folder is still there after a whole run")
        found = _features(place.work / self.target)
        expect(sorted(found) == sorted(map(str, inputs.photos())), f"features of {len(found)} images, in another order")
        if place != self.reference.place:
            wanted = _features(self.reference.place.work / self.target)
            same = all(np.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)
            expect(same, "features differ from those of a run that nothing disturbed")

    def prepare(self) -> None:
        self._old()
        super().prepare()


def _features(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise Failed(f"{path.name} is not whole: {error}") from None


class Calibrate(Subject):
    """`fvexport calibrate`: a JSON file, and a file of statistics that it names."""

    name, target = "calibrate", "ranges.json"

    def argv(self, samples: int = 8) -> list[object]:
        checkpoint = ("--checkpoint", inputs.GOLDEN / "timm_tiny")
        return ["calibrate", *checkpoint, *inputs.RES, "--samples", samples, "--out", self.target]

    @functools.cached_property
    def _old(self) -> Path:
        place = Place(inputs.FOLDER / "old-ranges").make()
        run(self.argv(2), place).check_success()
        return place.work

    def put_old(self, place: Place) -> None:
        shutil.copytree(self._old, place.work, dirs_exist_ok=True)

    def state(self, place: Place) -> str:
        from fvexport.calibration.calibrate import load_ranges
        from fvexport.core.errors import FvexportError

        path = place.work / self.target
        if not path.exists():
            return "absent"
        try:
            load_ranges(path)
        except FvexportError as error:
            raise Failed(f"the ranges are not whole: {error}") from None
        return "old" if path.read_bytes() == (self._old / self.target).read_bytes() else "new"

    def names(self, place: Place) -> set[str]:
        path = place.work / self.target
        return {self.target, json.loads(path.read_text())["statistics"]["file"]} if path.exists() else set()

    def check_done(self, place: Place) -> None:
        import numpy as np

        expect(self.state(place) == "new", "the ranges are not those of the last run")
        found, wanted = (
            [(tap, row["low"], row["high"], row["chosen_low"], row["chosen_high"]) for tap, row in ranges.items()]
            for ranges in (_ranges(place.work / self.target), _ranges(self.reference.place.work / self.target))
        )
        same = [row[0] for row in found] == [row[0] for row in wanted] and np.allclose(
            [row[1:] for row in found], [row[1:] for row in wanted], rtol=1e-5
        )
        expect(same, "ranges differ from those of a run that nothing disturbed")

    def prepare(self) -> None:
        assert self._old
        super().prepare()


def _ranges(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["ranges"]


class Answers(Subject):
    """A command that adds rows to a file of JSON lines."""

    target, resumes = "answers.jsonl", True

    def __init__(self, name: str, *arguments: object, encoders: int) -> None:
        self.name, self.arguments, self.encoders = name, arguments, encoders

    def argv(self) -> list[object]:
        data = {"ask": "--batch", "eval": "--data"}[self.name]
        model = ("--checkpoint", inputs.vlm(), *inputs.RES, "--max-new-tokens", 4, "--artifact", inputs.artifact("vlm"))
        return [self.name, *self.arguments, data, inputs.questions(), *model, "--out", self.target]

    def _rows(self, place: Place) -> list[dict[str, Any]]:
        """The rows with an answer. The others say what a fault did to an item, which the next run tries again."""
        path = place.work / self.target
        rows = [row for row in _rows(path) if "error" not in row] if path.exists() else []
        doubled = [key for key, count in Counter((r["encoder"], r["line"]) for r in rows).items() if count > 1]
        expect(not doubled, f"rows are there twice: {doubled[:3]}")
        return rows

    def state(self, place: Place) -> str:
        if not (place.work / self.target).exists():
            return "absent"
        return "new" if len(self._rows(place)) == self.encoders * 12 else "partial"

    def kept(self, place: Place) -> Any:
        return self._rows(place)

    def check_kept(self, before: Any, place: Place) -> None:
        expect(self._rows(place)[: len(before)] == before, "rows of the earlier run are lost or changed")

    def check_done(self, place: Place) -> None:
        found, wanted = (
            sorted((row["encoder"], row["line"], row["answer"]) for row in self._rows(one))
            for one in (place, self.reference.place)
        )
        expect(len(found) == self.encoders * 12, f"{len(found)} rows in the end, not {self.encoders * 12}")
        expect(found == wanted, "answers differ from those of a run that nothing disturbed")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """All lines but a last one that was cut off."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            assert isinstance(row, dict)
        except (ValueError, AssertionError):
            raise Failed(f"line {number} of {path.name} is damaged: {line[:80]!r}") from None
        yield row


class Sweep(Subject):
    """`fvexport sweep` of three cells."""

    name, target, resumes = "sweep", "sweep", True

    def argv(self) -> list[object]:
        cells = ("--backend", "eager", "--precision", "fp32", "--no-peers", "--rounds", 3, "--threads", 1)
        return ["sweep", "--variant", "tiny", *inputs.RES, *cells, "--out", self.target]

    def state(self, place: Place) -> str:
        from fvexport.benchmarks.sweep.store import Rounds, read_sweep
        from fvexport.core.errors import FvexportError

        folder = place.work / self.target
        file = folder / "results.jsonl"
        if not file.exists():
            return "partial" if folder.exists() else "absent"
        try:
            sweep = read_sweep(file)
            for environment in sweep.environments:
                Rounds(folder, environment)
        except FvexportError as error:
            raise Failed(f"the results cannot be read: {error}") from None
        # A cell whose windows disagree has another row when it got more of them.
        keys = Counter(
            (row["environment"], *map(str, row["cell"].values()), len((row["latency"] or {}).get("windows", ())))
            for row in self.kept(place)[0]
            if row["type"] == "result" and row["status"] != "skipped"
        )
        expect(all(count == 1 for count in keys.values()), "a result is there twice")
        windows = Counter((row["environment"], row["cell"], row["round"]) for row in self.kept(place)[1])
        expect(all(count == 1 for count in windows.values()), "a round is there twice")
        return "new" if len({r.cell.id for r in sweep.results if r.measured}) == 3 else "partial"

    def kept(self, place: Place) -> Any:
        files = (place.work / self.target / name for name in ("results.jsonl", "rounds.jsonl"))
        return [list(_rows(file)) if file.exists() else [] for file in files]

    def check_kept(self, before: Any, place: Place) -> None:
        for old, new in zip(before, self.kept(place), strict=True):
            expect(new[: len(old)] == old, "rows of the earlier run are lost or changed")

    def check_done(self, place: Place) -> None:
        expect(self.state(place) == "new", "not every cell has a result")
        for name in ("report.html", "report.md", "report.csv"):
            expect((place.work / self.target / name).stat().st_size > 1000, f"{name} is not written")
        hidden = [str(p.relative_to(place.work)) for p in place.work.rglob(".*") if "writing" in p.name]
        expect(not hidden, f"left behind: {hidden}")


SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Export("onnx", "onnx"),
        Export("trt", "trt", "--dry-run", "--fp32", "--no-simplify", "--no-parity"),
        Encode(),
        Calibrate(),
        Answers("eval", "--task", "vqa", encoders=2),
        Answers("ask", encoders=1),
        Sweep(),
    )
}
