"""`python -m fvexport` is the command `fvexport`."""

from .cli.main import main

if __name__ == "__main__":
    main()
