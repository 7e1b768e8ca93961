"""Faults of the machine: each command succeeds or fails with one line, and the older result survives.

After a fault that went away, the same command succeeds and removes what the failed run could not.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import system
from cases import Case, Failed, expect
from commands import NONE, Ended, Interference, Place, run, start
from subjects import SUBJECTS, Subject

SHARE = {
    "full disk": 0.14, "full temporary folder": 0.02, "full cache": 0.02, "file size": 0.04, "lost permission": 0.08,
    "signal": 0.2, "signal at start": 0.1, "memory": 0.06, "descriptors": 0.06, "clock": 0.02, "no home": 0.06,
}  # fmt: skip
"""Cases of one fault for each command, as a share of the kills."""
NOT_FOR_SWEEPS = ("full temporary folder", "full cache", "file size")
"""A sweep takes seconds, writes to neither folder, and its processes report such a fault as their cell's result."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
DISK = 64 << 20
Fault = Callable[[Subject, Place, random.Random], None]


def make_cases(count: int) -> Iterator[Case]:
    """All faults for all commands."""
    faults: dict[str, Fault] = {
        "full disk": _full_disk, "full temporary folder": _full_temporary_folder, "full cache": _full_cache,
        "file size": _file_size, "lost permission": _lost_permission, "signal": _signal, "memory": _low_memory,
        "signal at start": _signal_at_start, "descriptors": _few_descriptors, "clock": _clock_set_back,
        "no home": _no_home,
    }  # fmt: skip
    for name, subject in SUBJECTS.items():
        for fault, function in faults.items():
            share = SHARE[fault] / (5 if name == "sweep" else 2 if name == "trt" else 1)
            if name == "sweep" and fault in NOT_FOR_SWEEPS:
                continue
            for index in range(max(1, round(count * share))):
                yield Case(part="faults", name=f"{name}, {fault}", index=index, run=_faulty(subject, function))


def prepare(names: set[str]) -> None:
    """Runs each command once, undisturbed."""
    for name in {name.partition(",")[0] for name in names}:
        SUBJECTS[name].prepare()


def _faulty(subject: Subject, fault: Fault) -> Callable[[Path, random.Random], None]:
    def case(folder: Path, draw: random.Random) -> None:
        fault(subject, Place(folder / "run"), draw)

    return case


def _start_state(subject: Subject, place: Place, draw: random.Random) -> str:
    place.make()
    if not subject.resumes and draw.random() < 0.5:
        subject.put_old(place)
    return subject.state(place)


def _check_after(
    subject: Subject, place: Place, before: str, ended: Ended, *, left: set[str] = frozenset(), mention: str = ""
) -> None:
    """Success with a new result, or one line with the old one; nothing else in the folder but `left`."""
    ended.check_success_or_one_line(mention)
    state = subject.state(place)
    if ended.code == 0:
        expect(state == "new", f"it succeeded, and its result is {state}")
    else:
        allowed = {before} | ({"partial", "absent"} if subject.resumes else set())
        expect(state in allowed, f"it failed, and its result is {state} instead of {before}")
    if not subject.resumes:
        rest = place.listing() - subject.names(place) - left
        expect(not rest, f"left behind beside the result ({ended.in_words()}): {sorted(rest)}")


def _check_again(subject: Subject, place: Place) -> None:
    """Without the fault, the same command succeeds and leaves nothing else behind."""
    kept = subject.kept(place)
    run(subject.again(place), place, tag="next", seconds=200).check_success()
    subject.check_kept(kept, place)
    subject.check_done(place)
    subject.check_no_leftovers(place)


# --- disks -----------------------------------------------------------------------------------------


def _full_disk(subject: Subject, place: Place, draw: random.Random) -> None:
    """The disk of the result is full from a random file operation on, or has few bytes from the start."""
    system.own_mounts()
    system.mount_small_disk(place.work, DISK)
    before = _start_state(subject, place, draw)
    how = _filling(subject, place.work, draw)
    ended = run(subject.again(place), place, how)
    _check_after(subject, place, before, ended, left={"filler"})
    (place.work / "filler").unlink(missing_ok=True)
    if draw.random() < 0.3:
        _check_again(subject, place)


def _full_temporary_folder(subject: Subject, place: Place, draw: random.Random) -> None:
    _other_full_disk(subject, place, "tmp", draw)


def _full_cache(subject: Subject, place: Place, draw: random.Random) -> None:
    _other_full_disk(subject, place, "cache", draw)


def _other_full_disk(subject: Subject, place: Place, name: str, draw: random.Random) -> None:
    system.own_mounts()
    system.mount_small_disk(place.folder(name), DISK)
    before = _start_state(subject, place, draw)
    ended = run(subject.again(place), place, _filling(subject, place.folder(name), draw))
    _check_after(subject, place, before, ended)


def _filling(subject: Subject, folder: Path, draw: random.Random) -> Interference:
    leave = int(10 ** draw.uniform(0, 6.3)) if draw.random() < 0.7 else 0
    if draw.random() < 0.35:
        system.fill_disk(folder, leave)
        return NONE
    at = draw.randint(1, subject.reference.operations)
    return Interference(at=at, action=lambda: system.fill_disk(folder, leave))


def _file_size(subject: Subject, place: Place, draw: random.Random) -> None:
    """No file may grow beyond some size (`ulimit -f`)."""
    before = _start_state(subject, place, draw)
    size = int(10 ** draw.uniform(3, 6.5))
    ended = run(subject.again(place), place, Interference(before=lambda: system.limit(resource.RLIMIT_FSIZE, size)))
    _check_after(subject, place, before, ended)


def _lost_permission(subject: Subject, place: Place, draw: random.Random) -> None:
    """From a random file operation on, the folder of the result cannot be written to."""
    before = _start_state(subject, place, draw)
    system.give_to_nobody(place)
    at = draw.randint(1, subject.reference.operations)
    how = Interference(
        before=system.become_nobody if os.geteuid() == 0 else None, at=at, action=lambda: place.work.chmod(0o500)
    )
    ended = run(subject.again(place), place, how)
    place.work.chmod(0o700)
    # What is in a folder that cannot be written to stays.
    _check_after(subject, place, before, ended, left=place.listing() - {subject.target})
    if draw.random() < 0.3:
        _check_again(subject, place)


# --- signals ---------------------------------------------------------------------------------------


def _signal(subject: Subject, place: Place, draw: random.Random) -> None:
    """SIGTERM, SIGHUP or SIGINT at a random moment."""
    number, reference = draw.choice(SIGNALS), subject.reference
    before = _start_state(subject, place, draw)
    kept = subject.kept(place)
    if draw.random() < 0.5:
        at = draw.randint(1, reference.operations)
        how = Interference(at=at, action=lambda: os.kill(os.getpid(), number))
        running = start(subject.again(place), place, how)
    else:
        running = start(subject.again(place), place)
        moment = time.monotonic() + draw.uniform(0.02, reference.seconds)
        while time.monotonic() < moment and not running.poll():
            time.sleep(0.002)
        running.send(number)
    ended = running.wait(90)
    _check_signalled(ended, number)
    state = subject.state(place)
    subject.check_kept(kept, place)
    if ended.code == 0:
        expect(state == "new", f"it succeeded, and its result is {state}")
        return
    allowed = {before, "new"} | ({"partial"} if subject.resumes else set())  # the signal may come after the result
    expect(state in allowed, f"after {number.name} the result is {state} instead of {before}")
    subject.check_no_leftovers(place)
    # Python and torch leave a file there if a signal comes between its making and the return of its name.
    rest = [str(path.relative_to(place.root)) for path in place.folder("tmp").iterdir() if "fvexport-" in path.name]
    expect(not rest, f"after {number.name}, left in the temporary folder: {rest}")


def _check_signalled(ended: Ended, number: signal.Signals) -> None:
    """Success, or the exit code of the signal with one line."""
    ended.check_clean()
    if ended.code == 0:
        return
    expect(ended.code == 128 + number, f"after {number.name}: {ended.in_words()}, not exit code {128 + number}")
    lines = [line for line in ended.err.splitlines() if not line.startswith(("note: ", "warning: "))]
    expect(len(lines) == 1, f"after {number.name} it printed {len(lines)} lines: {ended.err[-300:]!r}")


STARTS = """import os, runpy, sys
os.write(1, b"starts")
sys.stdout = sys.stderr
runpy.run_module("fvexport", run_name="__main__", alter_sys=True)
"""


def _signal_at_start(subject: Subject, place: Place, draw: random.Random) -> None:
    """A signal while the command starts, in a process of its own."""
    number = draw.choice(SIGNALS)
    place.make()
    for _ in range(20):
        with (place.logs / "start.err").open("wb") as errors:
            command = [sys.executable, "-c", STARTS, *map(str, subject.argv())]
            process = subprocess.Popen(
                command, cwd=place.work, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                preexec_fn=_default_signals, env=_environment(place),  # noqa: PLW1509 - this process has one thread
            )  # fmt: skip
            assert process.stdout is not None
            process.stdout.read(6)
            time.sleep(draw.choice([0, draw.uniform(0, 0.05), draw.uniform(0, 0.4)]))
            process.send_signal(number)
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise Failed(f"{number.name} while it started did not end it within 60 s") from None
        text = (place.logs / "start.err").read_text(errors="replace")
        if code == -number and not text:
            return  # the system's own way, before the first line of fvexport
        if "Traceback" in text and "/fvexport/" not in text:
            continue  # the interpreter's own start
        _check_signalled(Ended(code, "", text, 0, []), number)
        expect(not place.listing(), f"left behind: {sorted(place.listing())}")
        return


def _default_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


def _environment(place: Place) -> dict[str, str]:
    own = {"TMPDIR": place.folder("tmp"), "XDG_CACHE_HOME": place.folder("cache"), "HOME": place.folder("home")}
    return {**os.environ, **{name: str(path) for name, path in own.items()}}


# --- limits ----------------------------------------------------------------------------------------


def _low_memory(subject: Subject, place: Place, draw: random.Random) -> None:
    """An address space a little larger than after the imports (`ulimit -v`)."""
    before = _start_state(subject, place, draw)
    more = int(10 ** draw.uniform(5.5, 9))
    limited = Interference(before=lambda: system.limit(resource.RLIMIT_AS, system.address_space() + more))
    _check_after(subject, place, before, run(subject.again(place), place, limited))


def _few_descriptors(subject: Subject, place: Place, draw: random.Random) -> None:
    """Few open files (`ulimit -n`)."""
    before = _start_state(subject, place, draw)
    most = draw.choice([3, 4, 5, 6, 8, 10, 12, 16, 20, 32])
    limited = Interference(before=lambda: system.limit(resource.RLIMIT_NOFILE, most))
    _check_after(subject, place, before, run(subject.again(place), place, limited))


def _clock_set_back(subject: Subject, place: Place, draw: random.Random) -> None:
    """The clock goes back by years between runs, and by hours during them; files are from the future."""
    before = _start_state(subject, place, draw)
    reference = subject.reference
    at = draw.randint(1, reference.operations)
    killed = Interference(at=at, action=lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(subject.again(place), place, killed, tag="killed")
    kept = subject.kept(place)
    ended = run(subject.again(place), place, Interference(before=lambda: _set_clock_back(draw)))
    ended.check_success()
    subject.check_kept(kept, place)
    subject.check_done(place)
    subject.check_no_leftovers(place)
    assert before


def _set_clock_back(draw: random.Random) -> None:
    now, now_ns, back = time.time, time.time_ns, float(draw.choice([3600, 86400 * 365 * 20, 1.79e9]))

    def earlier() -> float:
        nonlocal back
        back += draw.choice([0, 0, 0, 7200])
        return max(0.0, now() - back)

    time.time = earlier
    time.time_ns = lambda: now_ns() - int(back * 1e9)


def _no_home(subject: Subject, place: Place, draw: random.Random) -> None:
    """No home, one that is missing or read-only, or no folder for temporary files, as a user without a name."""
    before = _start_state(subject, place, draw)
    home = place.folder("home")
    read_only = place.root / "read-only"
    read_only.mkdir()
    read_only.chmod(0o555)
    kinds = {
        "no HOME": {"HOME": None, "XDG_CACHE_HOME": None},
        "missing HOME": {"HOME": str(home / "missing" / "x"), "XDG_CACHE_HOME": None},
        "read-only HOME": {"HOME": str(read_only), "XDG_CACHE_HOME": None},
        "HOME is a device": {"HOME": os.devnull, "XDG_CACHE_HOME": None},
        "read-only cache": {"XDG_CACHE_HOME": str(read_only)},
        "relative cache": {"XDG_CACHE_HOME": "relative"},
        "missing TMPDIR": {"TMPDIR": str(place.root / "missing")},
        "read-only TMPDIR": {"TMPDIR": str(read_only)},
    }
    kind = draw.choice(sorted(kinds))
    system.give_to_nobody(place)
    variables = tuple(kinds[kind].items())
    nobody = system.become_nobody if os.geteuid() == 0 else None
    ended = run(subject.again(place), place, Interference(before=nobody, environment=variables))
    try:
        _check_after(subject, place, before, ended, mention="TMPDIR" if "TMPDIR" in kind else "\n")
    except Failed as what:
        raise Failed(f"{kind}: {what}") from None
