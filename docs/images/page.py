"""Takes the picture of a report for the README: python docs/images/page.py REPORT.html OUT.png

Needs Chromium and playwright (extra `dev`). The picture is the top of the page and its first plot, in as few colours as
fit the repository.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, LARGEST = 1200, 100_000


def main() -> None:
    """Writes the picture; fails where it is larger than what the repository takes."""
    report, out = Path(sys.argv[1]), Path(sys.argv[2])
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = started.new_page(viewport={"width": WIDTH, "height": 800})
        page.goto(report.absolute().as_uri())
        last = page.locator("figure .plot.wide").first.bounding_box()
        assert last is not None, f"{report} has no plot"
        height = last["y"] + last["height"] + 4
        page.set_viewport_size({"width": WIDTH, "height": round(height)})
        shown = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        started.close()
    picture = Image.open(io.BytesIO(shown)).convert("RGB")
    for colours in (128, 64, 32, 16):
        picture.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, optimize=True)
        if out.stat().st_size <= LARGEST:
            return
    raise SystemExit(f"{out} has {out.stat().st_size} bytes; the repository takes {LARGEST}")


if __name__ == "__main__":
    main()
