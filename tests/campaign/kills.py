"""SIGKILL at random moments: afterwards a result is whole, the next run removes what was left, and no row is lost.

Half of the moments are random times in the run; the other half are just before a random file operation, most of which
are at the end, where results are written. A command that adds rows is killed again and again while it goes on, some
times in one folder; the others anew each time, over an older result or over none.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cases import Case, expect
from commands import Interference, Place, run, start
from subjects import SUBJECTS, Subject

CHAIN = 5
"""Kills of one sweep, until it may end."""


def make_cases(count: int) -> Iterator[Case]:
    """`count` kills of each command."""
    for name, subject in SUBJECTS.items():
        if name == "sweep":
            for index in range(-(-count // CHAIN)):
                kills = min(CHAIN, count - index * CHAIN)
                yield Case(part="kills", name=name, index=index, seconds=600, run=_killing(subject, kills))
        else:
            for index in range(count):
                yield Case(part="kills", name=name, index=index, run=_killing(subject, 1))


def prepare(names: set[str]) -> None:
    """Runs each command once, undisturbed."""
    for name in names & set(SUBJECTS):
        SUBJECTS[name].prepare()


def _killing(subject: Subject, kills: int) -> Callable[[Path, random.Random], int]:
    def case(folder: Path, draw: random.Random) -> int:
        place = Place(folder / "run").make()
        old = not subject.resumes and draw.random() < 0.5
        if old:
            subject.put_old(place)
        for _ in range(kills):
            _kill(subject, place, draw, old=old)
        before = subject.kept(place)
        ended = run(subject.again(place), place, tag="next", seconds=200)
        ended.check_success()
        subject.check_kept(before, place)
        subject.check_done(place)
        subject.check_no_leftovers(place)
        return kills

    return case


def _kill(subject: Subject, place: Place, draw: random.Random, *, old: bool) -> None:
    """Kills one run; tries other moments if the run ended first."""
    reference, share = subject.reference, 1.0
    for number in range(20):
        before = subject.kept(place)
        argv = subject.again(place)
        if draw.random() < 0.5:
            at = draw.randint(1, max(1, round(reference.operations * share)))
            running = start(argv, place, Interference(at=at, action=_kill_own), tag=f"killed-{number}")
        else:
            running = start(argv, place, tag=f"killed-{number}")
            _sleep_until(running.poll, draw.uniform(0, reference.seconds * share))
            running.send(signal.SIGKILL)
        ended = running.wait()
        expect(not ended.survivors, f"processes live on after the command was killed: {ended.survivors}")
        state = subject.state(place)
        subject.check_kept(before, place)
        allowed = {"absent", "partial", "new"} if not old else {"old", "new"}
        expect(state in allowed, f"after the kill the result is {state}")
        if ended.code == -signal.SIGKILL:
            return
        ended.check_success()
        subject.check_done(place)
        share *= 0.7
        if subject.resumes and state == "new":
            return  # nothing is left to kill; earlier kills of this folder count
    expect(False, "the run ended before each of 20 kills")


def _kill_own() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _sleep_until(stop: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not stop() and time.monotonic() < ends:
        time.sleep(min(0.002, max(0, ends - time.monotonic())))
