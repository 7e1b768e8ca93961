"""What a command needs from the system before it works: standard streams, a current folder and /proc.

Imports nothing heavy: this is done before everything else is imported.
"""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Opens those of descriptors 0 to 2 that are closed on the null device, and gives Python a stream for each.

    A file that is opened later would get the free number, and libraries write their messages to 1 and 2.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - until the end


def check_surroundings() -> None:
    """Raises ConfigError without a current folder, or on Linux without /proc: libraries abort where these are missing.

    PyTorch's and onnxruntime's messages name neither.
    """
    from ..core.errors import ConfigError

    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd is the same
    except OSError as error:
        raise ConfigError(f"the current folder cannot be used ({error.strerror}); change to another (`cd /`)") from None
    if sys.platform == "linux" and not os.path.exists("/proc/self"):  # noqa: PTH110
        raise ConfigError("/proc is not mounted here, and PyTorch and onnxruntime need it; `mount -t proc proc /proc`")
