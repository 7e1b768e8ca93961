"""`python -m fvexport.benchmarks.studies.kernels`."""

from .command import main

if __name__ == "__main__":
    main()
