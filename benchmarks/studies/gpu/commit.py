"""Results of a run as files of the repository, with the environment that they were measured in.

python3 benchmarks/studies/gpu/proof.py --commit DIR

DIR/proof.jsonl    ->  benchmarks/results/encoder-<gpu>.json
DIR/kernels.jsonl  ->  benchmarks/results/kernels-<gpu>.json
DIR/tuned.json     ->  rows in kernels/configs/<kernel>.json, for the architecture of that GPU
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....core.errors import ArtifactError
from ....kernels.table import GROWING
from . import commands, facts
from .facts import Fact

ROOT = Path(__file__).resolve().parents[3]
KEPT = ("phase", "warm", "operators", "operator-problem", "model", "latency", "toggle", "profile")
"""Kinds of facts that stand in the encoder's file."""
WORTH = 0.97
"""A tuned configuration is kept if its time is under this share of the committed one's: less is noise."""


def convert(folder: Path, root: Path = ROOT) -> list[Path]:
    """Writes the files; returns their paths. Rows that an earlier run made for the same sizes are replaced.

    Raises ArtifactError for a folder without results, and for one of a dry run.
    """
    found = facts.read(folder / facts.FILE)
    environments = facts.of(found, "environment")
    if not environments:
        raise ArtifactError(f"{folder} has no results of a run ({facts.FILE} names no environment); run proof.py first")
    environment = {k: v for k, v in environments[-1].items() if k not in ("t", "phase", "kind")}
    if environment.get("dry"):
        raise ArtifactError(f"{folder} has the results of a dry run, which measured nothing; run proof.py on a GPU")
    return list(_convert(folder, root, found, environment))


def _convert(folder: Path, root: Path, found: Sequence[Fact], environment: dict[str, Any]) -> Iterator[Path]:
    gpu = short_name(environment["gpu"]["name"])
    for ceilings in facts.of(found, "ceilings")[-1:]:
        environment["ceilings"] = {k: v for k, v in ceilings.items() if k not in ("t", "phase", "kind")}
    results = root / "benchmarks" / "results"
    yield _write(results / f"encoder-{gpu}.json", environment, [f for f in found if f["kind"] in KEPT])
    rows = kernel_rows(folder)
    if rows:
        yield _write(results / f"kernels-{gpu}.json", environment, rows)
    if (folder / commands.TUNED).exists():
        tuned = json.loads((folder / commands.TUNED).read_text(encoding="utf-8"))
        for op, new in tuned_rows(tuned, measured_on(environment)).items():
            if (table := root / "kernels" / "configs" / f"{op}.json").exists():  # a kernel may be gone since
                yield _add_rows(table, new)


def kernel_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that `benchmarks.studies.kernels` wrote, without those of its environment and ceilings."""
    return [row for row in facts.read(folder / commands.KERNELS) if row.get("kind") == "operator"]


def short_name(gpu: str) -> str:
    """A GPU's name for a file: `h100` for `NVIDIA H100 80GB HBM3`, `rtx-4090` for `NVIDIA GeForce RTX 4090`."""
    match = re.search(r"\b((?:RTX\s+(?:PRO\s+)?)?[A-Z]*\d+[A-Za-z]*)\b", gpu)
    return re.sub(r"[^a-z0-9]+", "-", (match[1] if match else gpu).lower()).strip("-")


def measured_on(environment: Mapping[str, Any]) -> str:
    """`H100 80GB HBM3, torch 2.11.0, triton 3.6.0, 2026-11-26`."""
    versions = environment.get("versions", {})
    named = [f"{name} {versions[name].partition('+')[0]}" for name in ("torch", "triton") if name in versions]
    return ", ".join([environment["gpu"]["name"].removeprefix("NVIDIA "), *named, str(environment["date"])[:10]])


def tuned_rows(tuned: Mapping[str, Any], where: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of `kernels/configs/<kernel>.json` by kernel, for what a search found to be faster.

    Args:
        tuned: a search's file (`kernels.tune`): environment and configurations by key.
        where: what it was measured on.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for key, config in tuned["configs"].items():
        ms, before = config.get("ms"), config.get("default_ms")
        if ms is None or before is None or ms >= WORTH * before:
            continue
        op, dtype, *sizes = key.split(" ")
        why = f"measured: {where}, {1e3 * before:.1f} -> {1e3 * ms:.1f} us"
        found.setdefault(op, []).append(
            {
                "arch": [tuned["environment"]["arch"]], "dtype": dtype, "sizes": _bounds(sizes),
                "blocks": config["blocks"], "num_warps": config["num_warps"], "num_stages": config["num_stages"],
                "why": why,
            }
        )  # fmt: skip
    return found


def _bounds(sizes: Sequence[str]) -> dict[str, list[int]]:
    """Inclusive bounds: a size that comes with the image counts from the power of two below, excluded."""
    found = {}
    for text in sizes:
        name, _, value = text.partition("=")
        high = int(value)
        found[name] = [high // 2 + 1 if name in GROWING else high, high]
    return found


def _write(path: Path, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """`{"environment", "rows"}` with one row a line."""
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = f'{{\n"environment": {json.dumps(environment, indent=1)},\n"rows": [\n{lines}\n]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _add_rows(path: Path, new: Sequence[Mapping[str, Any]]) -> Path:
    """Puts rows before the others, in the place of measured ones for the same architectures and sizes."""
    data = json.loads(path.read_text(encoding="utf-8"))
    taken = [(row["arch"], row.get("dtype"), row["sizes"]) for row in new]
    kept = [
        row for row in data["rows"]
        if not row["why"].startswith("measured:") or (row.get("arch"), row.get("dtype"), row.get("sizes")) not in taken
    ]  # fmt: skip
    lines = ",\n".join("    " + json.dumps(row) for row in (*new, *kept))
    head = {name: value for name, value in data.items() if name != "rows"}
    text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "rows": [\n{lines}\n  ]\n}}\n'
    path.write_text(text, encoding="utf-8")
    return path
