"""onnxsim in a process of its own: it is native code that can abort, hang, or be killed where memory runs out.

The process starts while the model is traced, serves every export of its parent, and ends with it. It imports no torch,
which onnxsim would load at each start and needs for nothing here.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO

import onnx

from ..core.errors import first_line
from ..core.phrases import signal_name

LIMIT_S = 600.0
"""Seconds that one graph may take; the released encoder's takes two."""
_GRAPH, _REASON = b"G", b"R"


class OnnxsimError(Exception):
    """Why there is no simplified graph, in a few words."""


def start() -> None:
    """Starts the process, if onnxsim is installed and it does not run; it then imports while others work."""
    with contextlib.suppress(OnnxsimError, OSError), _lock:
        _running()


def simplify(model: onnx.ModelProto, *, fold_constants: bool) -> onnx.ModelProto:
    """The graph that `onnxsim.simplify` makes; raises OnnxsimError if it makes none, or dies over it."""
    request = bytes([fold_constants]) + model.SerializeToString()
    with _lock:
        try:
            child = _running()
        except OSError as error:
            raise OnnxsimError(f"onnxsim does not start: {error.strerror}") from None
        with _ended_unless_answered(child):
            answer = _ask(child, request)
    if answer[:1] == _REASON:
        raise OnnxsimError(answer[1:].decode())
    return onnx.ModelProto.FromString(answer[1:])


# --- the parent's side ------------------------------------------------------------------------------

_lock = threading.Lock()
_child: subprocess.Popen[bytes] | None = None
_made_for: tuple[object, ...] = ()


def _running() -> subprocess.Popen[bytes]:
    """The process, started if there is none for this process and its search path."""
    global _child, _made_for  # noqa: PLW0603  # one for all exports
    if importlib.util.find_spec("onnxsim") is None:
        raise OnnxsimError("onnxsim is not installed; `pip install onnxsim`")
    wanted = (os.getpid(), *sys.path)
    if _child is None or _child.poll() is not None or _made_for != wanted:
        _end()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        _child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )  # fmt: skip
        _made_for = wanted
    return _child


@atexit.register
def _end() -> None:
    global _child  # as above
    child, _child = _child, None
    if child is not None and _made_for[0] == os.getpid():  # not what a forked process inherited
        child.kill()
        child.communicate()


@contextlib.contextmanager
def _ended_unless_answered(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends the process after the time limit, or when the caller is interrupted: its answer would be the next one's."""
    timer = threading.Timer(LIMIT_S, child.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    except BaseException:
        _end()
        raise
    finally:
        timer.cancel()


def _ask(child: subprocess.Popen[bytes], request: bytes) -> bytes:
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(OSError):  # it died: the missing answer says so
        _write(child.stdin, request)
    answer = _read(child.stdout)
    if answer is None:
        raise OnnxsimError(f"onnxsim {_death(child.wait())}")
    return answer


def _death(status: int) -> str:
    """How a process ended, by its exit status."""
    if status >= 0:
        return f"ended with exit code {status}"
    name = signal_name(-status)
    hint = f": no memory, or no answer in {LIMIT_S:.0f} s" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


# --- both sides -------------------------------------------------------------------------------------


def _write(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "little") + content)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """One message; None at the end of the stream."""
    size = stream.read(8)
    content = stream.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    return content if content else None


# --- the process itself -----------------------------------------------------------------------------


def serve() -> None:
    """Answers requests until the parent closes the pipe."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # onnxsim prints
    try:
        _import_onnxsim()
        broken = None
    except Exception as error:  # a broken install
        broken = f"onnxsim does not import: {first_line(error)}"
    while (request := _read(requests)) is not None:
        answer = _REASON + broken.encode() if broken else _answer(request)
        _write(answers, answer)


def _import_onnxsim() -> None:
    """Imports onnxsim without torch, unless this version needs it."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import onnxsim
    except ImportError as error:
        if "torch" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "onnxsim")]:
            del sys.modules[name]
        import onnxsim  # noqa: F401


def _answer(request: bytes) -> bytes:
    import onnxsim

    model = onnx.ModelProto.FromString(request[1:])
    try:
        result, checked = onnxsim.simplify(model, skip_constant_folding=not request[0])
    except Exception as error:  # a bare RuntimeError from its C++
        return _REASON + f"onnxsim failed: {first_line(error)}".encode(errors="replace")
    if not checked:
        return _REASON + b"onnxsim's own check found other numbers"
    return _GRAPH + result.SerializeToString()
