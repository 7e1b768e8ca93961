"""What is measured if time is left: other sizes, and bfloat16 at the sizes of the report."""

from __future__ import annotations

from dataclasses import replace

from ..job import Job
from . import latency


def run(job: Job) -> None:
    """Writes `latency` for each."""
    scope = job.scope
    sizes = [list(size) for size in scope.leftover]
    latency.run(replace(job, options={"sizes": sizes}))
    main = [list(size) for size in scope.latency]
    latency.run(replace(job, options={"sizes": main, "dtype": "bfloat16"}))
