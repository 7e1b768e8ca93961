"""How fast a run goes, in words."""

from __future__ import annotations

import pytest

from fvexport.export.features.pace import Pace, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "1 h"), (3660, "1 h 1 min"), (7200, "2 h"), (90_000, "1 d 1 h"),
     (172_800, "2 d")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_pace_is_that_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pace, done, note = Pace(100, 10_100), 100, ""
    for second in range(1, 121):
        now = float(second)
        done += 50 if second <= 60 else 10  # it slows down after a minute
        note = pace.note(done, 3)
        if second == 60:
            assert note == "50 images/s, 2 min left, 3 failed"
    assert note == "10 images/s, 11 min left, 3 failed"
    assert Pace(0, 10).note(0, 0) == ""
