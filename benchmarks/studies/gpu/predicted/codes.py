"""Instructions, registers and shared memory of every compiled kernel, counted in its SASS for sm_90.

A kernel is a straight part and one main loop (over taps, over K, over hidden channels, over keys), so that a program
issues `outside + passes * loop` instructions per warp. `count_codes` writes `codes.json`, which is committed with the
versions that compiled it; predictions read it and need no compiler.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .....core.errors import UnavailableError
from .....kernels.launches import Launch

FILE = Path(__file__).parent / "codes.json"
COMMAND = "python -m fvexport.benchmarks.studies.gpu.predicted.count_codes"
ARCH = "sm_90"
WARP = 32
WITHOUT_EFFECT = ("GROUP_M", "PDL", "PERSISTENT", "WHOLE")
"""Constants that change few or no instructions. A persistent kernel is counted tile by tile, as one that is not."""

UNUSUAL = ("fp8e4nv", "u8")
"""Types of tensors that are told apart; all others follow from the model's."""


@dataclass(frozen=True)
class Code:
    """One compiled kernel.

    Attributes:
        registers: per thread.
        shared: bytes per program.
        spills: bytes per thread.
        outside: instructions per warp outside the main loop.
        loop: instructions per warp of one pass of it.
        unrolled: steps of the source's loop in one pass.
        peeled: steps of it that run outside.
        mma: of those, products on tensor cores.
        mma_macs: multiply-adds of one of them and one warp, on average.
        mufu: of those, exp2, reciprocals and the like.
    """

    registers: int
    shared: int
    spills: int
    outside: int
    loop: int = 0
    unrolled: int = 1
    peeled: int = 0
    mma: int = 0
    mma_macs: int = 0
    mufu: int = 0


def key_of(launch: Launch) -> str:
    """What a launch's code is kept under: kernel, constants, optional arguments, unusual types, warps and stages."""
    names = [name for name, _ in launch.signature]
    constants = [
        f"{name}={int(value)}"
        for name, value in launch.constants
        if name.isupper() and isinstance(value, int) and name not in WITHOUT_EFFECT
    ]
    optional = [f"+{name}" for name in ("residual", "scale") if {name, f"{name}_ptr"} & set(names)]
    types = [f"{name}:{kind}" for name, kind in launch.signature if kind[1:] in UNUSUAL]
    return " ".join(
        [launch.name, *constants, *optional, *types, f"warps={launch.num_warps}", f"stages={launch.num_stages}"]
    )


@functools.lru_cache
def stored() -> dict[str, Code]:
    """The committed codes by key."""
    return {key: Code(**code) for key, code in json.loads(FILE.read_text(encoding="utf-8"))["codes"].items()}


def code_of(launch: Launch) -> Code:
    """The code of a launch; raises UnavailableError where it was never counted."""
    found = stored().get(key_of(launch))
    if found is None:
        raise UnavailableError(f"{FILE.name} has no counts for {key_of(launch)!r}; run `{COMMAND}`")
    return found


def to_json(codes: Mapping[str, Code], versions: Mapping[str, Any]) -> str:
    """The file's text: one kernel per line."""
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(asdict(codes[key]))}" for key in sorted(codes))
    head = f'  "arch": "{ARCH}", "dtype": "fp16", "command": "{COMMAND}", "versions": {json.dumps(dict(versions))}'
    return f'{{\n{head},\n  "codes": {{\n{lines}\n  }}\n}}\n'
