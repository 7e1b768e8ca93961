"""Results become a report: a page, the same in Markdown, and every figure as CSV."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ArtifactError, UnavailableError
from ...core.output_path import check_file, os_errors, put_file, scratch_beside
from ...core.progress import Progress, silent
from .compare import DEFAULT_THRESHOLD, Comparison, compare_runs
from .load import Loaded, load
from .speedup import over_eager

HTML, MARKDOWN, CSV = "report.html", "report.md", "report.csv"
PACKAGES = ("jinja2", "markupsafe", "matplotlib", "scipy")
"""What the extra `report` installs."""


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        html, markdown, csv: its files.
        loaded: the runs that it shows, and notices on their files.
        comparison: differences from the baseline; None with one run alone.
    """

    html: Path
    markdown: Path
    csv: Path
    loaded: Loaded
    comparison: Comparison | None

    @property
    def notices(self) -> tuple[str, ...]:
        return self.loaded.notices


def check_packages() -> None:
    """Raises UnavailableError if a package of the extra `report` is not installed; imports none of them."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UnavailableError(
            f'a report needs {", ".join(missing)}, which {verb} not installed; `pip install "fvexport[report]"`'
        )


def write_report(
    results: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    baseline: str | os.PathLike[str] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    relative: bool = False,
    must_compare: bool = False,
    progress: Progress = silent,
) -> Report:
    """Writes `report.html`, `report.md` and `report.csv` into `out`, in place of an earlier report.

    Args:
        results: folders that `fvexport sweep` wrote, or the files in them; of any number of machines and dates.
        out: a folder, made if it is not there.
        baseline: one more of `results`, with which the others are compared; by default the earliest, if there are
            several runs.
        threshold: from which share on a difference counts.
        relative: compare times over the reference cell's in the same round, instead of times.
        must_compare: fail where there is nothing to compare.
        progress: told what is being done.

    Raises:
        ArtifactError: results that are missing or damaged, something else's files in the way, or no place to write.
        UnavailableError: the extra `report` is not installed.
    """
    check_packages()
    folder = Path(out)
    files = {name: folder / name for name in (HTML, MARKDOWN, CSV)}
    for file in files.values():
        check_file(file, force=True, need_bytes=1_000_000)
        _check_ours(file)
    progress("read results", 0, 3)
    loaded = load(results, baseline)
    comparison = compare_runs(loaded, threshold=threshold, relative=relative)
    if must_compare and (comparison is None or not comparison.differences):
        found = "only one run" if comparison is None else "no cell in both"
        raise ArtifactError(f"nothing to compare: there is {found}; name a --baseline of the same sweep")
    loaded = over_eager(loaded)
    from .markdown import build_markdown
    from .page import build_page
    from .tables import to_csv

    progress("draw plots", 1, 3)
    content = {
        HTML: build_page(loaded, comparison),
        MARKDOWN: build_markdown(loaded, comparison),
        CSV: to_csv(loaded.runs),
    }
    progress("write", 2, 3)
    for name, text in content.items():
        _write(files[name], text)
    return Report(files[HTML], files[MARKDOWN], files[CSV], loaded, comparison)


def _check_ours(file: Path) -> None:
    """A report is replaced without being asked, anything else never."""
    if not file.exists():
        return
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            start = stream.read(2_000)
    except OSError as error:
        raise ArtifactError(f"cannot replace {file}: {error.strerror or error}; choose another --out") from None
    if not _is_ours(file.name, start):
        raise ArtifactError(f"{file} exists and is no report of fvexport; choose another --out")


def _is_ours(name: str, start: str) -> bool:
    """Whether a report's file of that name begins so, in this version or an earlier one."""
    if name == HTML:
        head = start.partition("<title>")[0]
        return head.startswith("<!DOCTYPE html>\n") and '\n<meta name="generator" content="fvexport ' in head
    if name == MARKDOWN:
        return start.startswith("<!-- Made by fvexport ")
    from .tables import CSV_COLUMNS

    earlier = [column for column in CSV_COLUMNS if not column.startswith("centred_")]
    return start.partition("\n")[0] in (",".join(CSV_COLUMNS), ",".join(earlier))


def _write(file: Path, text: str) -> None:
    with os_errors(file), scratch_beside(file) as scratch:
        # The name of a file may hold bytes that are no UTF-8.
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        put_file(scratch, file)
