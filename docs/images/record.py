"""Records a command's output as an SVG for the README: python docs/images/record.py OUT.svg COMMAND…"""

import os
import pty
import sys

from rich.console import Console
from rich.text import Text

WIDTH = 88


def main() -> None:
    """Runs the command in a terminal of its own and writes what it prints, colours included."""
    out, *command = sys.argv[1:]
    os.environ["COLUMNS"] = str(WIDTH)
    printed = bytearray()

    def keep(descriptor: int) -> bytes:
        data = os.read(descriptor, 4096)
        printed.extend(data)
        return data

    if pty.spawn(command, keep):
        raise SystemExit("the command failed")
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    console.print(Text.assemble(("$ ", "bold"), " ".join(command)))
    # What a progress bar drew and took back is no part of the picture.
    lines = [line.rpartition("\x1b[2K")[2] for line in printed.decode().replace("\r\n", "\n").split("\n")]
    console.print(Text.from_ansi("\n".join(line for line in lines if line.strip("\x1b[?25lh\r"))))
    console.save_svg(out, title="fvexport")


if __name__ == "__main__":
    main()
