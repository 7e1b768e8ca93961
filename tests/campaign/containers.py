"""Two containers that write to one folder, and a container with a read-only root, by Linux namespaces.

Each command is process 1 of its own namespace of process ids: both have the same id, and neither sees the other. The
first pauses at a random file operation or begins at a random time before the second.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import system
from cases import Case, expect
from commands import Ended, Interference, Place, Running, run, start
from subjects import SUBJECTS, Subject

TWO = ("onnx", "encode", "calibrate")
PAUSE_S = 30.0


def make_cases(count: int) -> Iterator[Case]:
    """A tenth of `count` for each command and way of writing, and each command once under a read-only root."""
    for name in TWO:
        for what, force in (("two at once", False), ("two at once, --force", True)):
            for index in range(max(1, count // 10)):
                run_case = _two(SUBJECTS[name], force=force)
                yield Case(part="containers", name=f"{name}, {what}", index=index, run=run_case)
    for name, subject in SUBJECTS.items():
        for what, temporary in (("read-only root", False), ("read-only root, TMPDIR elsewhere", True)):
            yield Case(part="containers", name=f"{name}, {what}", run=_read_only(subject, temporary=temporary))


def prepare(names: set[str]) -> None:
    """Runs each command once, undisturbed."""
    for name in {name.partition(",")[0] for name in names}:
        SUBJECTS[name].prepare()


def _in_container(argv: list[object], place: Place, how: Interference, tag: str) -> Running:
    """Starts a command as process 1 of a new namespace."""

    def before() -> None:
        system.own_mounts()
        system.mount_process_table()

    with system.next_child_is_process_1():
        return start(argv, place, Interference(before=before, at=how.at, action=how.action), tag)


def _two(subject: Subject, *, force: bool) -> Callable[[Path, random.Random], None]:
    def case(folder: Path, draw: random.Random) -> None:
        system.own_mounts()
        place = Place(folder / "run").make()
        if force:
            subject.put_old(place)
        argv = subject.again(place)
        reference, marks = subject.reference, place.logs
        if draw.random() < 0.6:  # the first waits in the midst of its work until the second has ended, or a part of it
            seconds = draw.choice([PAUSE_S, draw.uniform(0, reference.seconds)])
            at = draw.randint(1, reference.operations)
            how = Interference(at=at, action=lambda: _pause(marks, seconds))
        else:
            how = Interference()
        first = _in_container(argv, place, how, "first")
        _wait_for(lambda: (marks / "paused").exists() or first.poll(), draw.uniform(0.1, 1) * reference.seconds)
        second = _in_container(argv, place, Interference(), "second")
        _wait_for(second.poll, 100)
        (marks / "go").touch()
        ended = [one.wait(100) for one in (first, second)]
        _check_two(subject, place, ended, force=force)

    return case


def _check_two(subject: Subject, place: Place, ended: list[Ended], *, force: bool) -> None:
    for one in ended:
        one.check_success_or_one_line()
    words = " and ".join(one.in_words() for one in ended)
    won = sum(one.code == 0 for one in ended)
    several = force or subject.finished_by_another
    expect(won >= 1 if several else won == 1, f"{won} of two containers succeeded: {words}")
    subject.check_done(place)
    subject.check_no_leftovers(place)


def _pause(marks: Path, seconds: float) -> None:
    (marks / "paused").touch()
    _wait_for((marks / "go").exists, seconds)


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.002)


def _read_only(subject: Subject, *, temporary: bool) -> Callable[[Path, random.Random], None]:
    def case(folder: Path, draw: random.Random) -> None:
        system.own_mounts()
        place = Place(folder / "run").make()

        def before() -> None:
            system.own_mounts()
            system.make_root_read_only(place.work)

        own = place.work / ".tmp"
        if temporary:
            own.mkdir()
        variables = (("XDG_CACHE_HOME", None), ("HOME", "/"), ("TMPDIR", str(own) if temporary else None))
        ended = run(subject.argv(), place, Interference(before=before, environment=variables))
        if temporary:
            ended.check_success()
        else:
            ended.check_success_or_one_line(mention="TMPDIR")
        if ended.code == 0:
            subject.check_done(place)
        rest = place.listing() - subject.names(place) - {".tmp"}
        expect(not rest, f"left behind: {sorted(rest)}")

    return case
