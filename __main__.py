"""`fvexport`, also as `python -m fvexport`: handles signals before it imports anything that takes time."""

from .cli.signals import end_on_signals


def main() -> None:
    """Entry point; always ends in SystemExit."""
    end_on_signals()
    from .cli.main import main as run

    run()


if __name__ == "__main__":
    main()
