"""The report in a real browser: no errors, no requests, nothing that sticks out, a table that sorts, legible plots."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvexport.benchmarks.report.write import write_report
from fvexport.benchmarks.sweep.result import Result
from fvexport.benchmarks.sweep.store import append

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('.plot svg')].filter(svg => svg.getClientRects().length).map(svg =>
    [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]));
  const found = [];
  for (const texts of boxes)
    texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 4) found.push(`${a} / ${b}`);
    }));
  return found;
}"""
"""Pairs of names in plots that cover one another by more than the space above and below letters."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)})")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with two batch sizes, so that every part of the page is there."""
    folder = tmp_path_factory.mktemp("report")
    for name, seed, cpu in (("old", 0, "Old CPU"), ("new", 1, "New CPU")):
        records = []
        for record in synthetic(seed, cpu=cpu, noise=0.005, resolutions=(256, 1024)):
            if isinstance(record, Result):
                record = replace(record, cell=replace(record.cell, variant="fastvithd"))
                if record.measured and record.ttft is None:
                    records.append(replace(record, cell=replace(record.cell, batch=8)))
            records.append(record)
        append(folder / name / "results.jsonl", *records)
    return write_report([folder / "old", folder / "new"], folder / "out").html


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the report at a width; what went wrong in it is in `page.wrong`."""
    contexts = []

    def opened(width: int, scheme: str = "light", file: Path = report) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.wrong = []
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("request", lambda request: page.wrong.append(request.url) if "data:" not in request.url else None)
        page.goto(file.as_uri())
        assert page.wrong.pop(0) == file.as_uri()
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "light"), (390, "dark")])
def test_fits_and_loads_nothing(open_page, width: int, scheme: str) -> None:
    page = open_page(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    page.evaluate("document.querySelectorAll('.plot text').forEach(text => text.after(text.cloneNode(true)))")
    assert page.evaluate(OVERLAPS) != []  # so it would have been seen
    assert page.evaluate("[...document.querySelectorAll('.plot')].filter(p => p.getClientRects().length).length") > 10
    smallest = "Math.min(...[...document.querySelectorAll('.plot text')].filter(t => t.getClientRects().length)"
    assert page.evaluate(smallest + ".map(t => t.getBoundingClientRect().height))") > 8
    assert page.wrong == []


def test_the_table_sorts(open_page) -> None:
    page = open_page(1280)
    table = page.locator("#run0-table")
    title = table.locator("th", has_text="p50")

    def column() -> list[float | None]:
        index = title.evaluate("title => title.cellIndex")
        keys = table.evaluate("(table, i) => [...table.tBodies[0].rows].map(row => row.cells[i].dataset.key)", index)
        return [float(key) if key else None for key in keys]

    before = column()
    title.get_by_role("button").click()
    assert title.get_attribute("aria-sort") == "ascending"
    known = sorted(key for key in before if key is not None)
    empty = [None] * before.count(None)
    assert empty and column() == known + empty
    title.get_by_role("button").press("Enter")  # by the keyboard too
    assert title.get_attribute("aria-sort") == "descending" and column() == known[::-1] + empty
    other = table.locator("th", has_text="backend")
    other.get_by_role("button").click()
    assert title.get_attribute("aria-sort") is None and other.get_attribute("aria-sort") == "ascending"
    assert sorted(map(str, column())) == sorted(map(str, before))
    assert page.wrong == []


def test_the_filter_and_the_columns(open_page) -> None:
    page = open_page(1280)
    rows = page.locator("#run0-table tbody tr:visible")
    everything = rows.count()
    tools = page.locator('[data-table="run0-table"]')
    tools.get_by_role("searchbox").fill("openvino int8 1024")
    assert 0 < rows.count() < everything
    assert all("int8" in text for text in rows.all_inner_texts())
    assert f"{rows.count()} of {everything}" in tools.inner_text()
    hidden = page.locator("#run0-table th", has_text="cosine")
    assert not hidden.is_visible()
    tools.get_by_role("checkbox").check()
    assert hidden.is_visible() and page.wrong == []


def test_the_legend_hides_curves(open_page) -> None:
    page = open_page(1280)
    chip = page.locator("#run0 .chip").first
    curve = page.locator(f"#run0-latency .wide g.{chip.get_attribute('data-curve')} use").first
    assert curve.is_visible()
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false" and not curve.is_visible()
    page.locator("#run0 [data-show=all]").click()
    assert chip.get_attribute("aria-pressed") == "true" and curve.is_visible()
    assert page.wrong == []


def test_the_theme(open_page) -> None:
    page = open_page(1280, "dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) == "rgb(255, 255, 255)" != dark
    page.locator("#theme").click()
    assert page.evaluate(colour) == dark and page.wrong == []


def test_prints(open_page) -> None:
    """On white, without controls, within the width of the paper."""
    page = open_page(1280, "dark")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 between its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible() and not page.locator(".tools").first.is_visible()
    assert page.wrong == []
