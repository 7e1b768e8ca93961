"""The report as files: what stands in them, what is left out, and what is in the way."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from fvexport import __version__
from fvexport.benchmarks.report.axes import log_ticks
from fvexport.benchmarks.report.formatting import THIN, milliseconds, percent, three, times
from fvexport.benchmarks.report.load import Loaded, Run
from fvexport.benchmarks.report.markdown import build_markdown
from fvexport.benchmarks.report.series import COLOURS, MARKERS, curves
from fvexport.benchmarks.report.tables import to_csv
from fvexport.benchmarks.report.write import Report, write_report
from fvexport.benchmarks.sweep.result import Absent, Cell, Environment, Latency, Record, Result, Window
from fvexport.benchmarks.sweep.store import append
from fvexport.core.errors import ArtifactError

Write = Callable[..., Report]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(records: Sequence[Record]) -> Report:
        append(tmp_path / "results.jsonl", *records)
        return write_report([tmp_path], tmp_path)

    return made


@pytest.fixture(scope="module")
def full(synthetic, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, list[Record]]:
    """A report of every kind of cell, made once."""
    folder = tmp_path_factory.mktemp("report")
    records = [
        replace(r, cell=replace(r.cell, variant="fastvithd")) if isinstance(r, Result) else r for r in synthetic()
    ]
    append(folder / "results.jsonl", *records)
    return write_report([folder], folder), records


def plots(report: Report) -> set[str]:
    return set(re.findall(r'<figure class="\w+" id="run0-([\w-]+)"', report.html.read_text(encoding="utf-8")))


def test_every_plot_that_has_data(full) -> None:
    report, _ = full
    assert plots(report) == {"latency", "speedup", "accuracy", "ttft", "memory", "tokens"}


def test_the_page_is_sound_and_loads_nothing(full) -> None:
    """Tags are balanced, ids unique and found, no address of another file in it."""
    page = full[0].html.read_text(encoding="utf-8")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="|url\()#([^")]+)', page):
        assert target in ids
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert "Content-Security-Policy" in page and "#f0f" not in page

    class Balanced(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "link", "input"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Balanced()
    parser.feed(page)
    assert parser.open == []


def test_what_the_page_says(full) -> None:
    report, records = full
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", report.html.read_text(encoding="utf-8")))
    assert "At 1024 × 1024, openvino int8 is fastest" in text
    assert "Without quantization it is openvino bf16" in text
    for said in ("ran out of memory: over the limit of 2.0 GB", "gave no answer in time", "crashed: the process died",
                 "the last 3 windows differ by 9.1 %", "pip install onnxruntime-gpu", "no NVIDIA GPU found",
                 "M1 Max, Core ML (paper)", "another machine", records[0].command, "Synthetic CPU"):  # fmt: skip
        assert said in text, said


def test_the_published_curve_is_of_one_model_only(synthetic, write: Write) -> None:
    """Of the tiny variant there is none, nor of sizes that were not measured."""
    page = write(synthetic(resolutions=(256,))).html.read_text(encoding="utf-8")
    assert "M1 Max" not in page


def test_csv_holds_every_figure(full) -> None:
    report, records = full
    rows = list(csv.DictReader(io.StringIO(report.csv.read_text(encoding="utf-8"))))
    results = [r for r in records if isinstance(r, Result)]
    assert len(rows) == len(results)
    known = {(r.cell.kind, r.cell.backend, r.cell.form, r.cell.precision, str(r.cell.height)): r for r in results}
    for row in rows:
        result = known[row["kind"], row["backend"], row["form"], row["precision"], row["height"]]
        assert row["status"] == result.status and row["reason"] == result.reason
        if result.latency is None:
            assert row["p50_ms"] == "" == row["speedup"]
        else:
            assert float(row["p50_ms"]) == result.latency.p50_ms
            assert float(row["speedup_low"] or 0) <= float(row["speedup"]) <= float(row["speedup_high"] or 1e9)
        assert row["sqnr_db"] == ("" if result.parity is None else str(result.parity.sqnr_db))
        assert row["ttft_prefill_ms"] == ("" if result.ttft is None else str(result.ttft.prefill_ms))


def test_markdown_tables_are_aligned(full) -> None:
    text = full[0].markdown.read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    assert len(tables) == 2
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1
    assert "openvino int8" in text and THIN not in text


def test_missing_data_leaves_out_its_plot(synthetic, write: Write) -> None:
    """No parity, no memory, no reference, no language model: no empty axes."""

    def bare(result: Result) -> Result:
        latency = result.latency
        windows = latency and tuple(replace(w, reference_ms=None) for w in latency.windows)
        return replace(
            result, parity=None, ttft=None, tokens=None, peak_host_mb=None,
            latency=latency and replace(latency, windows=windows),
        )  # fmt: skip

    records = [bare(r) if isinstance(r, Result) else r for r in synthetic() if getattr(r, "ttft", None) is None]
    report = write(records)
    assert plots(report) == {"latency"}
    page = report.html.read_text(encoding="utf-8")
    assert "No cell that was timed passes its parity" in page
    assert ">SQNR, dB<" not in page and ">speed-up<" not in page  # nor empty columns


def test_one_resolution_is_a_ranking(synthetic, write: Write) -> None:
    """A curve of one point says nothing: rows, the best first; and no plot of a single number of tokens."""
    report = write(synthetic(resolutions=(512,), noise=0.002))
    assert plots(report) == {"latency", "speedup", "accuracy", "ttft", "memory"}
    page = report.html.read_text(encoding="utf-8")
    (figure,) = re.findall(r'id="run0-latency">(.*?)</figure>', page, re.S)
    assert "Latency at 512" in figure
    names = re.findall(r">([\w-]+(?: [\w-]+)* (?:fp32|bf16|int8))</text>", figure.partition("plot narrow")[0])
    assert len(names) == 11 and names[:3] == ["openvino int8", "openvino bf16", "onnxruntime-cpu int8"]


def test_nothing_was_measured(synthetic, write: Write) -> None:
    records = [r for r in synthetic() if not isinstance(r, Result) or not r.measured]
    report = write(records)
    assert plots(report) == set()
    assert "No cell was measured; the notes say why." in report.html.read_text(encoding="utf-8")


HOSTILE = (
    "<script>alert('1')</script> | &amp;", "[link](javascript:alert) ![](x:y)", "<img src=x onerror=alert>", "``` `x`",
    "# heading", "- list", "1. list", "=HYPERLINK(1)", "@SUM(1)", "+1", "-1+2", "＝1", "$\\frac$", "$x_{$", "{0} {x}",
    "https://example.com www.example.com", "*bold* _it_ ~no~", "' onload='alert'", '" onload="alert"', "]]> --> </svg>",
)  # fmt: skip


def hostile(records: Sequence[Record], bad: str) -> list[Record]:
    """The same with `bad` wherever a file may hold any text."""

    def changed(record: Result | Absent) -> Result | Absent:
        if isinstance(record, Absent):
            return replace(record, reason=bad, install=bad, environment=environment.id)
        text = {"variant": bad, "checkpoint": bad + str(record.cell.samples), "weights": bad, "form": record.cell.form}
        text |= {"form": bad} if record.cell.backend == "openvino" else {}
        text |= {"llm": bad} if record.cell.llm else {}
        latency = record.latency and replace(record.latency, timer=bad, reference=bad)
        return replace(
            record, cell=replace(record.cell, **text), reason=bad, computes=bad, latency=latency,
            environment=environment.id,
        )  # fmt: skip

    first, *others = records
    assert isinstance(first, Environment)
    environment = replace(
        first, command=bad, gpus=(bad,), platform=bad, python=bad, versions={bad: bad},
        cpu={"model": bad, "features": [bad]}, settings={bad: bad, "tolerance": bad, "window_s": True},
    )  # fmt: skip
    return [environment, *(changed(r) for r in others if isinstance(r, Result | Absent))]


@pytest.mark.parametrize("bad", [" ".join(HOSTILE[::2]), " ".join(HOSTILE[1::2])])
def test_foreign_text_is_text(full, synthetic, write: Write, bad: str) -> None:
    """On the page there is nothing but what a sound page has, and no formula of TeX was drawn."""

    class Parts(HTMLParser):
        def __init__(self, page: str) -> None:
            super().__init__()
            self.tags, self.text = set[tuple[str, str]](), ""
            self.feed(page)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags |= {(tag, ""), *((tag, name) for name, _ in attrs)}

        def handle_data(self, data: str) -> None:
            self.text += data

    page, sound = (Parts(report.html.read_text(encoding="utf-8")) for report in (
        write(hostile(synthetic(resolutions=(256,)), bad)), full[0]
    ))  # fmt: skip
    assert page.tags <= sound.tags
    assert page.text.count(bad) > 10


@pytest.mark.parametrize("bad", HOSTILE)
def test_foreign_text_is_no_formula(synthetic, bad: str) -> None:
    """Of a spreadsheet, in which numbers stay numbers."""
    environment, *records = hostile(synthetic(resolutions=(256,)), bad)
    results = tuple(r for r in records if isinstance(r, Result))
    for row in csv.DictReader(io.StringIO(to_csv([Run(bad, environment, results, (), ())]))):
        assert bad in row["reason"] and bad in row["machine"] and bad in row["checkpoint"]
        for value in row.values():
            assert not value.startswith(("=", "+", "@", "＝", "\t", "\r")) and (value[:1] != "-" or float(value) < 0)
        assert row["threads"] == "2"


@pytest.mark.parametrize("bad", HOSTILE)
def test_foreign_text_is_no_markdown(synthetic, bad: str) -> None:
    environment, *records = hostile(synthetic(resolutions=(256,)), bad)
    run = Run(bad, environment, *(tuple(r for r in records if isinstance(r, kind)) for kind in (Result, Absent)), ())
    document = build_markdown(Loaded((run, run), (bad,)), None)
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(document)
    tokens = [inner for block in blocks for inner in (block, *(block.children or ()))]
    kinds = {token.type for token in tokens}
    assert not kinds & {
        "html_inline",
        "link_open",
        "image",
        "em_open",
        "strong_open",
        "s_open",
        "hr",
        "ordered_list_open",
    }
    assert [token.content for token in tokens if token.type == "html_block"] == [
        f"<!-- Made by fvexport {__version__} -->\n"
    ]
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
    assert all(token.level < 2 for token in tokens if token.type == "bullet_list_open")
    shown = " ".join("".join(c.content for c in token.children or ()) for token in tokens if token.type == "inline")
    assert bad in shown
    assert [token.content for token in tokens if token.type == "fence"] == [f"{bad}\n"] * 2
    # Links that only GitHub's Markdown makes.
    assert not re.search(r"(https?|ftp)://|www\.", re.sub("(?s)`+.*?`+", "", document))


def test_two_runs(synthetic, tmp_path: Path) -> None:
    for name, scale, cpu in (("old", 1.0, "Slow CPU"), ("new", 0.5, "Fast CPU")):
        append(tmp_path / name / "results.jsonl", *synthetic(scale=scale, cpu=cpu, resolutions=(256,)))
    report = write_report([tmp_path / "new"], tmp_path / "out", baseline=tmp_path / "old")
    page, text = (file.read_text(encoding="utf-8") for file in (report.html, report.markdown))
    for said in ("Differences from Slow CPU, 2 cores", "faster", "−50 %", "95 %"):
        assert said in page and said in text
    assert 'id="comparison0-differences"' in page and 'id="run1"' in page
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "report.csv"}


def test_a_report_is_replaced_and_nothing_else(synthetic, write: Write, tmp_path: Path) -> None:
    first = write(synthetic(resolutions=(256,)))
    before = first.html.read_text(encoding="utf-8")
    assert write_report([tmp_path], tmp_path).html.read_text(encoding="utf-8") == before  # and the same again
    (tmp_path / "report.csv").write_text(EARLIER_CSV)
    assert write_report([tmp_path], tmp_path).html.read_text(encoding="utf-8") == before


EARLIER_CSV = (
    "machine,date,kind,backend,form,precision,height,width,tiles,batch,threads,variant,checkpoint,weights,samples,llm,"
    "prompt_tokens,status,reason,p50_ms,p90_ms,p99_ms,mean_ms,min_ms,calls,rounds,timer,spread,images_per_second,"
    "speedup,speedup_low,speedup_high,parity,sqnr_db,cosine,cosine_min,rel_l2,tokens,peak_host_mb,run_host_mb,"
    "peak_gpu_mb,energy_j,artifact_mb,build_s,load_s,first_ms,ttft_encoder_ms,ttft_connector_ms,ttft_prefill_ms,"
    "ttft_total_ms,computes\n"
)
"""What a report began with before there were centred figures."""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.html", "my notes"),
        ("report.html", "<!DOCTYPE html>\n<title>Notes</title>\n<p>Made with fvexport\n"),
        ("report.html", '<!DOCTYPE html>\n<title>Notes</title>\n<meta name="generator" content="fvexport 1">\n'),
        ("report.md", "my notes"),
        ("report.md", "# My notes on fvexport\n"),
        ("report.md", "# Notes\n\n<!-- Made by fvexport 0.1 -->\n"),
        ("report.csv", "my,notes\n"),
        ("report.csv", "machine,date,kind,backend,note\n"),
        ("report.csv", "fvexport,GPU\n"),
        ("report.md", ""),
    ],
)
def test_a_user_s_own_file_is_no_report(synthetic, write: Write, tmp_path: Path, name: str, content: str) -> None:
    write(synthetic(resolutions=(256,)))
    out = tmp_path / "other"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(ArtifactError, match=f"{name} exists and is no report of fvexport; choose another --out"):
        write_report([tmp_path], out)
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [(name, content)]


# Curves and words


def timed(**changes: object) -> Result:
    """A result of one cell, which differs from a plain one in `changes`."""
    cell = Cell(
        kind="ours", backend="openvino", precision="fp32", height=256, width=256, batch=1, threads=2, variant="tiny",
        checkpoint="seeded:0", weights="0" * 12,
    )  # fmt: skip
    latency = Latency(
        p50_ms=1.0, p90_ms=1.0, p99_ms=1.0, mean_ms=1.0, min_ms=1.0, count=1, windows=(Window(0, 1.0, 1),),
        timer="wall", stable=True, spread=0.0,
    )  # fmt: skip
    changed = replace(cell, **changes)  # type: ignore[arg-type]
    return Result(cell=changed, status="ok", reason="", environment="e", date="d", latency=latency)


def test_many_curves_all_look_different() -> None:
    """Forty runners in every precision: no two with the same colour, marker, dashes and filling."""
    found = curves(
        [
            timed(backend=f"backend{number}", precision=precision)
            for number in range(40)
            for precision in ("fp32", "fp16", "bf16", "int8", "fp8")
        ]
    )
    assert len(found) == 200 == len({curve.style for curve in found}) == len({curve.key for curve in found})
    assert COLOURS * len(MARKERS) == 90


def test_curves_say_what_differs() -> None:
    found = curves([timed(threads=n) for n in (1, 2)])
    assert [curve.label for curve in found] == ["openvino fp32, 1 threads", "openvino fp32, 2 threads"]


@pytest.mark.parametrize(
    ("low", "high", "most", "apart"), [(34, 31_000, 9, 0.05), (100, 130, 9, 0.05), (1, 1e6, 4, 0.13), (5, 80, 4, 0.13)]
)
def test_ticks(low: float, high: float, most: int, apart: float) -> None:
    found = log_ticks(low, high, most, apart)
    assert 2 <= len(found) <= most and found == sorted(found)
    assert all(low * 0.999 <= value <= high * 1.001 for value in found)


def test_wording() -> None:
    assert [three(v) for v in (0.1234, 6.8, 54.84, 116.3, 9.996, 99.96, 1347.2, 0)] == [
        "0.123", "6.80", "54.8", "116", "10.0", "100", f"1{THIN}347", "0",
    ]  # fmt: skip
    assert milliseconds(54.8) == "54.8 ms" and milliseconds(12_345) == "12.3 s"
    assert [percent(v) for v in (0.052, -0.123, 0.00001)] == ["+5.2 %", "−12 %", "0.0 %"]
    assert times(1.239) == "1.24×" and times(12.39) == "12.4×"


@pytest.mark.parametrize("temporary", [True, False])
def test_matplotlib_without_a_home(tmp_path: Path, temporary: bool) -> None:
    """It draws in a temporary folder without a warning, or the error names what to set."""
    hide = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null']; " if not temporary else ""
    code = hide + "from fvexport.benchmarks.report.page import _import_matplotlib; _import_matplotlib()"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "TMP"))}
    kept |= {"HOME": "/dev/null/home", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=False)
    if temporary:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert "UnavailableError: no report can be drawn (" in done.stderr and "MPLCONFIGDIR" in done.stderr
