"""`python -m fvexport.benchmarks.studies.gpu.phases JOB`: runs one phase; JOB is what `Job.to_json` makes."""

from __future__ import annotations

import faulthandler
import sys

from ..job import Job
from . import run


def main() -> None:
    """Runs the job of the first argument; a crash of a library leaves its stack in the log."""
    faulthandler.enable()
    run(Job.from_json(sys.argv[1]))


if __name__ == "__main__":
    main()
