"""`python -m fvexport.benchmarks.studies.scale`."""

from .command import main

if __name__ == "__main__":
    main()
