"""`fvexport`, also as `python -m fvexport`: handles signals before it imports anything that takes time."""

import sys

try:
    from .cli.signals import end_on_signals
    from .cli.surroundings import open_standard_streams
except KeyboardInterrupt:  # before the handlers exist
    sys.stderr.write("interrupted\n")
    sys.exit(130)


def main() -> None:
    """Entry point; always ends in SystemExit."""
    end_on_signals()
    open_standard_streams()
    from .cli.main import main as run

    run()


if __name__ == "__main__":
    main()
