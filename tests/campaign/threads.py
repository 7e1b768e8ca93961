"""One `Encoder` in four threads: every result equals the serial one.

Each backend runs in a process of its own, started as `python tests/campaign/threads.py BACKEND ARTIFACT CALLS`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BACKENDS = ("onnxruntime-cpu", "openvino", "eager", "torch-compile")
ARTIFACTS = ("new", "dynamic", "uint8")
THREADS = 4


def make_cases(count: int) -> Iterator[Any]:
    """Four calls for each of `count`, with each backend and kind of artifact."""
    from cases import Case

    for backend in BACKENDS:
        for artifact in ARTIFACTS:
            run = _shared(backend, artifact, THREADS * count)
            kind = "fixed" if artifact == "new" else artifact
            yield Case(part="threads", name=f"{backend}, {kind}", run=run)


def prepare(names: set[str]) -> None:
    """Exports the artifacts."""
    import inputs

    for artifact in ARTIFACTS:
        inputs.artifact(artifact)
    assert names


def _shared(backend: str, artifact: str, calls: int) -> Callable[[Path, random.Random], int]:
    def case(folder: Path, draw: random.Random) -> int:
        import inputs
        from cases import Failed, Skipped, expect

        command = [sys.executable, __file__, backend, str(inputs.artifact(artifact)), str(calls)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        (folder / "stderr").write_text(done.stderr)
        if done.returncode != 0:
            raise Failed(f"it ended with {done.returncode}: {done.stderr[-500:]!r}")
        found = json.loads(done.stdout.splitlines()[-1])
        if "unavailable" in found:
            raise Skipped(found["unavailable"])
        expect(not found["errors"], f"{len(found['errors'])} of {calls} calls failed: {found['errors'][:1]}")
        expect(not found["wrong"], f"{found['wrong']} of {calls} results differ from the serial ones")
        return calls

    return case


def _compare(backend: str, artifact: str, calls: int) -> dict[str, Any]:
    """Calls one Encoder from four threads; returns how many results differ, and the errors."""
    import numpy as np

    import fvexport
    from fvexport.core.errors import UnavailableError

    try:
        encoder = fvexport.Encoder(artifact, backend)
    except UnavailableError as error:
        return {"unavailable": str(error)}
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (90, 100, 3), np.uint8) for _ in range(8)]
    dynamic = Path(artifact).name == "dynamic"
    batches = [[image] if not dynamic or number % 2 else [image, images[0]] for number, image in enumerate(images)]
    serial = [np.array(encoder(batch)) for batch in batches]

    def call(number: int) -> str | bool:
        try:
            found = encoder(batches[number % 8])
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:300]
        wanted = serial[number % 8]
        return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max())

    with ThreadPoolExecutor(THREADS) as threads:
        results = list(threads.map(call, range(calls)))
    again = [np.array(encoder(batch)) for batch in batches]
    kept = all(np.allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max()) for a, b in zip(serial, again, strict=True))
    return {"wrong": results.count(False) + (not kept), "errors": [r for r in results if isinstance(r, str)]}


if __name__ == "__main__":
    print(json.dumps(_compare(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
