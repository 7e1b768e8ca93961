"""The table of a campaign: printed, and written as JSON and Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from cases import Row


def write(rows: list[Row], out: Path, *, seed: int, seconds: float) -> None:
    """Prints the table and writes campaign.json and campaign.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"seed": seed, "seconds": round(seconds), "rows": [asdict(row) for row in rows]}
    (out / "campaign.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = _markdown(rows, seed, seconds)
    (out / "campaign.md").write_text(text, encoding="utf-8")
    print(text)


def _markdown(rows: list[Row], seed: int, seconds: float) -> str:
    lines = ["| part | command or reader | tried | failed |", "|---|---|---:|---:|"]
    for row in rows:
        tried = f"skipped: {row.skipped}" if row.skipped and not row.tried else str(row.tried)
        lines.append(f"| {row.part} | {row.name} | {tried} | {len(row.failed)} |")
    tried, failed = sum(row.tried for row in rows), sum(len(row.failed) for row in rows)
    lines += ["", f"{tried} tried, {failed} failed, in {seconds / 60:.1f} minutes, with seed {seed}."]
    for row in rows:
        for one in row.failed:
            what = one["what"] if len(one["what"]) < 1500 else "…" + one["what"][-1500:]
            lines += [
                "",
                f"**{row.part}, {row.name}**: {what}",
                f"- again: `{one['again']}`",
                f"- kept: {one['folder']}",
            ]
    return "\n".join(lines) + "\n"
