"""A matplotlib figure becomes SVG that lies inside a page: text as text, colours of the style sheet, ids of its own.

matplotlib writes fixed colours. Plots are therefore drawn in colours that stand for names (`INK`), which become CSS
variables here, so that a page in the dark needs no second picture.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from .series import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK: dict[str, str] = {f"c{index}": f"#f0f0{index:02x}" for index in range(COLOURS)} | {
    name: f"#f0f1{index:02x}"
    for index, name in enumerate(("fg", "muted", "grid", "page", "slower", "faster", "part0", "part1", "part2"))
}
"""Name of a CSS variable -> the colour that stands for it in a drawing."""

RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fvexport",
    "font.family": "DejaVu Sans",  # comes with matplotlib; the page has its own font, which is narrower
    "font.size": 11,
    "axes.edgecolor": INK["muted"],
    "axes.labelcolor": INK["fg"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK["fg"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.labelcolor": INK["fg"],
    "ytick.labelcolor": INK["fg"],
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK["fg"],
    "text.parse_math": False,  # a checkpoint's name may hold dollar signs
}

_XLINK = "{http://www.w3.org/1999/xlink}href"
_NAMES = {colour: name for name, colour in INK.items()}
_PIXEL = 72
"""A figure of one inch is 72 units of its SVG, and a unit is a CSS pixel."""


def inches(width: float, height: float) -> tuple[float, float]:
    """The `figsize` of a drawing that many pixels large."""
    return width / _PIXEL, height / _PIXEL


def to_svg(figure: Figure, prefix: str, description: str, tips: Mapping[str, Sequence[str]] | None = None) -> str:
    """The figure as an `<svg>` element for a page of HTML.

    Args:
        figure: drawn under `RC`, with colours of `INK`.
        prefix: of every id, so that several drawings fit one page.
        description: what a screen reader says.
        tips: gid of a line -> what to show where the pointer rests on its markers, one for each.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's font draws it
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if (target := element.attrib.pop(_XLINK, None)) is not None:
            element.set("href", target)
    for line, texts in (tips or {}).items():
        _add_tips(root, line, texts)
    _clean(root, prefix)
    _unwrap(root)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    text = ET.tostring(root, encoding="unicode", short_empty_elements=True)
    text = re.sub(r"#f0f[01][0-9a-f]{2}\b", lambda found: f"var(--{_NAMES[found[0]]})", text)
    return re.sub(r">\s+<", "><", text).replace(" />", "/>")


def _add_tips(root: ET.Element, line: str, texts: Sequence[str]) -> None:
    group = next((element for element in root.iter("g") if element.get("id") == line), None)
    marks = [] if group is None else list(group.iter("use"))
    for mark, text in zip(marks, texts, strict=False):
        ET.SubElement(mark, "title").text = text


def _clean(root: ET.Element, prefix: str) -> None:
    """Removes what a page has itself (metadata, style sheet, fonts), and makes ids and classes of gids."""
    used = set(re.findall(r"#([\w.-]+)", ET.tostring(root, encoding="unicode")))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style") or (child.tag == "defs" and not any(c.tag != "style" for c in child)):
                parent.remove(child)
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name is not None and name.startswith("curve-"):
            element.set("class", name.removeprefix("curve-").partition("-")[0])
        elif name in used:
            element.set("id", f"{prefix}-{name}")
        for key, value in element.attrib.items():
            if key in ("d", "x", "y", "transform"):
                # matplotlib writes millionths of a pixel.
                value = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)  # noqa: PLW2901
                element.set(key, re.sub(r"\s+", " ", value).strip())
            elif key == "href":
                element.set(key, value.replace("#", f"#{prefix}-"))
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}-"))
        if (style := element.get("style")) and element.tag == "text":
            element.set("style", _text_style(style))
            if element.get("transform", "").startswith("rotate(-0 "):
                del element.attrib["transform"]


def _unwrap(parent: ET.Element) -> None:
    """Puts the children of groups that say nothing in their place."""
    for child in parent:
        _unwrap(child)
    children = [inner for child in parent for inner in (child if child.tag == "g" and not child.attrib else [child])]
    parent[:] = children


def _text_style(style: str) -> str:
    """Without the family, which is the page's."""
    entries = dict(re.findall(r"\s*([\w-]+):\s*([^;]+)", style))
    if "font" in entries:
        size = re.search(r"([\d.]+px)", entries.pop("font"))
        entries["font-size"] = size[1] if size else "11px"
    entries.pop("font-family", None)
    return "; ".join(f"{key}: {value}" for key, value in entries.items())
