"""Starts a Ray cluster on this machine, or connects to one, and says in one line what is wrong."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import UnavailableError, first_line
from ..core.hardware import usable_threads
from ..core.input_file import read_text
from ..core.versions import version_of
from .workers import RESERVED_CPUS, Node

START = "start one with `ray start --head`, or leave out --ray-address (address)"
CONNECT_SECONDS = 20
INSTALL = 'pip install "fvexport[ray]"'


def import_ray() -> Any:
    """The module `ray`, with `ray.data` and its checkpoints.

    Raises UnavailableError if it is not installed, or has no checkpoints yet.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        raise UnavailableError(
            f"encoding on Ray needs {missing or 'ray'}, which is not installed; `{INSTALL}`"
        ) from None
    except ImportError as error:
        raise UnavailableError(f"Ray does not load ({first_line(error)}); reinstall it: `{INSTALL}`") from None
    try:
        writer = importlib.import_module("ray.data.checkpoint.checkpoint_writer")
    except ImportError:
        writer = None
    if not hasattr(writer, "PENDING_CHECKPOINT_SUFFIX"):  # checkpoints in two phases
        found = version_of("ray") or "of this installation"
        raise UnavailableError(f"Ray {found} cannot resume a run without writing images twice; `{INSTALL}` (2.55 can)")
    return ray


@contextlib.contextmanager
def connected(address: str | None, *, verbose: bool = False) -> Iterator[Any]:
    """The module `ray`, connected; a cluster that this starts, or a connection that it makes, ends with the block.

    An existing connection of this process is used if no address is given, and left open.

    Raises UnavailableError if no cluster answers at the address, or none can be started.
    """
    ray = import_ray()
    if address is None and ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": "local" if address is None else _answering(address), "log_to_driver": verbose}
    if address is None:
        options |= {"num_cpus": usable_threads() + RESERVED_CPUS, "include_dashboard": False}
    options["logging_level"] = logging.INFO if verbose else logging.ERROR
    with _own_signals(), contextlib.nullcontext() if verbose else _silent():
        try:
            ray.init(**options)
        except Exception as error:
            reason = first_line(error)
            if address is None:
                raise UnavailableError(
                    f"Ray does not start on this machine ({reason}); see its log in /tmp/ray"
                ) from None
            raise UnavailableError(f"Ray does not connect to {options['address']} ({reason})") from None
        except BaseException:  # a signal
            ray.shutdown()
            raise
    try:
        # Ray prints messages of its nodes on stdout, where a command's own result goes.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(sys.stderr if verbose else nowhere):
            yield ray
    finally:
        with _own_signals():
            ray.shutdown()


def _answering(address: str) -> str:
    """The address as HOST:PORT, if something answers there: Ray itself tries for minutes.

    Raises UnavailableError if nothing does.
    """
    found = address
    if address == "auto":
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        with contextlib.suppress(OSError, UnicodeDecodeError):  # what `ray start` on this machine left
            found = read_text(Path(folder, "ray", "ray_current_cluster")).strip()
        found = os.environ.get("RAY_ADDRESS") or found
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = "it is no HOST:PORT" if isinstance(error, ValueError) else getattr(error, "strerror", None) or error
        if found == "auto":
            raise UnavailableError(f"no Ray cluster runs on this machine; {START}") from None
        raise UnavailableError(f"no Ray cluster at {found or repr(found)} ({reason}); {START}") from None
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps the C++ part of Ray off stderr, for the whole connection: it takes its log level when it connects.

    Ray 2.60 reports a harmless fact about each worker of Ray Data as an error. The level is set by a variable alone,
    and that it was is reported too, for which stderr leads nowhere in the block.
    """
    before = os.environ.get("RAY_BACKEND_LOG_LEVEL")
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        if before is None:
            del os.environ["RAY_BACKEND_LOG_LEVEL"]
        else:
            os.environ["RAY_BACKEND_LOG_LEVEL"] = before


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the handler of SIGTERM: Ray would replace it, and end the process without a word while it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    utils = importlib.import_module("ray._private.utils")
    setter = getattr(utils, "set_sigterm_handler", None)
    if setter is not None:
        utils.set_sigterm_handler = lambda _handler: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if setter is not None:
            utils.set_sigterm_handler = setter  # type: ignore[attr-defined]
        signal.signal(signal.SIGTERM, before)


def nodes_of(ray: Any) -> list[Node]:
    """What the cluster's live nodes have."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(float(found.get("CPU", 0)), float(found.get("GPU", 0))) for found in resources]
