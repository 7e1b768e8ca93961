"""No name, argument, file or answer controls the terminal that a command prints to, and none loses its own letters."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from fvexport.cli import printing
from fvexport.cli.notices import printed_warnings
from fvexport.cli.progress_bar import _Line
from fvexport.core.errors import FvexportError, FvexportWarning

HOSTILE = "a\x1b]0;PWN\x07\x1b[2J\x9b31m\x1bc\rb\u202e[link=x]é日"
KEPT = "b [link=x]é日"


def check(text: str) -> None:
    """Line breaks are the only control characters, and no override of the direction is left."""
    assert not (found := re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text)), found


@pytest.mark.parametrize("err", [False, True])
def test_each_way_of_printing(capsys: pytest.CaptureFixture[str], err: bool) -> None:
    ways: list[Callable[[], None]] = [
        lambda: printing.write_line(HOSTILE, err=err),
        lambda: printing.write_text(HOSTILE, err=err),
        lambda: printing.notices([HOSTILE], err=err),
        lambda: printing.table((HOSTILE, ""), [(HOSTILE, HOSTILE)], title=HOSTILE),
        lambda: printing.facts([(HOSTILE, HOSTILE)], title=HOSTILE),
    ]
    for way in ways:
        way()
        out, error = capsys.readouterr()
        check(out + error)
        assert "[link=x]é日" in (out + error).replace("\n", "")
        assert not re.search("PWN|2J|31m", out + error)
    printing.error(HOSTILE)
    assert capsys.readouterr().err.count("\n") == 1


def test_json_keeps_every_text(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_json({"name": HOSTILE + "\x7f"})
    out = capsys.readouterr().out
    check(out)
    assert json.loads(out) == {"name": HOSTILE + "\x7f"}


def test_an_answer_keeps_its_language_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    answer = "1. می\u200cخواهم\n\t2. 👩\u200d🔬 日本語\u00a0!\n"
    printing.write_text(answer, end="")
    assert capsys.readouterr().out == answer


def test_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with printed_warnings():
        warnings.warn(HOSTILE, FvexportWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="é日") as caught:
            warnings.warn(HOSTILE, UserWarning, stacklevel=1)
    check(capsys.readouterr().err)
    assert len(caught) == 1


def test_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    printing.log_to_stderr()
    logging.getLogger("fvexport").warning("reading %s", HOSTILE)
    err = capsys.readouterr().err
    check(err)
    assert "é日" in err


def test_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich moves the cursor and draws in colour, but of the name there is only text."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("fvexport.cli.progress_bar.DELAY", 0.0)
    with _Line() as line:
        line(HOSTILE, 1, 2)
        time.sleep(0.5)
    shown = terminal.getvalue()
    assert "[link=x]é日" in shown and not re.search("\x1b]|\x07|\x9b|\x1bc|\u202e|2J", shown)


def test_inspect_of_a_foreign_artifact(fvexport, copied: Path) -> None:
    """Its name, the names of its files, and texts of its manifest."""
    found = copied.rename(copied.with_name(HOSTILE.replace("/", "")))
    manifest = json.loads((found / "manifest.json").read_text())
    manifest["checkpoint"]["source"] = HOSTILE
    (found / HOSTILE).write_bytes(b"")
    manifest["files"][HOSTILE] = {"bytes": 0}
    (found / "manifest.json").write_text(json.dumps(manifest))
    outcome = fvexport("inspect", found)
    check(outcome.out + outcome.err)
    assert "é日" in outcome.out + outcome.err


def test_encode_and_parity_with_foreign_names(fvexport, artifact: Path, pictures: list[Path], tmp_path: Path) -> None:
    image = shutil.copy(pictures[0], tmp_path / f"{HOSTILE}.png")
    for args in (
        ("encode", image, "missing\x1b]0;PWN\x07.jpg", "--artifact", artifact, "--out", f"{HOSTILE}.safetensors"),
        ("parity", artifact, "--images", image),
        ("parity", artifact, "--images", image, "-v", "--checkpoint", HOSTILE),
    ):  # fmt: skip
        outcome = fvexport(*args)
        check(outcome.out + outcome.err)


def test_a_bug_with_a_foreign_text(capsys: pytest.CaptureFixture[str]) -> None:
    from fvexport.cli.main import _show_bug

    try:
        raise RuntimeError(HOSTILE) from FvexportError(HOSTILE)
    except RuntimeError as error:
        _show_bug(RuntimeError, error, error.__traceback__)
    err = capsys.readouterr().err
    check(err)
    assert "Traceback" in err and "RuntimeError" in err and "é日" in err
