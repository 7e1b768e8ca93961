"""Attacks on fvexport, and a table of what was tried and what failed: `make campaign`.

    python tests/campaign                                         everything
    python tests/campaign --only kills,faults                     parts
    python tests/campaign --only faults.*.signal --count 5        fewer cases of some rows
    python tests/campaign --seed 7 --only kills.onnx --index 17   one case again

Exits with 1 if anything failed. The folders of failed cases stay in build/campaign. The files here:

    cases       what a case is, and how cases run, each in a process of its own
    commands    `fvexport …` as a fork of this process, with interference at a random file operation
    subjects    the seven commands, and whether what they left is whole
    inputs      what they get
    system      limits, users, namespaces, mounts
    table       what is printed and written
    kills, faults, containers, threads, hostile, fuzz
                the parts
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import inputs
import table
from cases import Row, run_cases
from commands import warm_up

COUNT = 50
PARTS = ("kills", "faults", "containers", "threads", "hostile", "fuzz")


def main() -> int:
    """Runs the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/campaign", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="parts or rows, separated by commas: kills,faults.signals")
    parser.add_argument("--count", type=int, default=COUNT, help="kills of each command; other parts take a share")
    parser.add_argument("--fuzz", type=int, default=0, help="inputs for each reader [default: 10 x --count]")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--index", type=int, help="only the case with this index")
    parser.add_argument("--jobs", type=int, default=2, help="cases that run at once")
    parser.add_argument("--out", type=Path, default=Path("build/campaign"), help="folder of results and failed cases")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all cases")
    options = parser.parse_args()
    only = [word.strip() for word in options.only.split(",") if word.strip()]
    started, out = time.monotonic(), options.out.resolve()
    cases = {
        part: [
            case
            for case in importlib.import_module(part).make_cases(
                (options.fuzz or 10 * options.count) if part == "fuzz" else options.count
            )
            if (not only or case.matches(only)) and options.index in (None, case.index)
        ]
        for part in PARTS
    }
    if not any(cases.values()):
        print(f"no case is named {options.only}, with index {options.index}", file=sys.stderr)
        return 2
    inputs.use_folder(out / "inputs")
    warm_up()
    rows: list[Row] = []
    for part in PARTS:
        if cases[part]:
            began = time.monotonic()
            print(f"{part}: {len(cases[part])} cases ", end="", flush=True, file=sys.stderr)
            importlib.import_module(part).prepare({case.name for case in cases[part]})
            rows += run_cases(cases[part], out / "cases", seed=options.seed, jobs=options.jobs, keep=options.keep)
            print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    table.write(rows, out, seed=options.seed, seconds=time.monotonic() - started)
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
