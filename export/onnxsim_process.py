"""onnxsim in a process of its own: it is native code that can abort, hang, or be killed where memory runs out.

The process starts while the model is traced, serves every export of its parent, and ends with it. It imports no torch,
which onnxsim would load at each start and needs for nothing here.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO

import onnx

from ..core.errors import first_line
from ..core.phrases import signal_name

LIMIT_S = 600.0
"""Seconds that one graph may take; the released encoder's takes two."""
LONGEST = 1 << 31
"""Bytes of an answer at most: no proto is larger."""
POLL_S = 0.1
"""How often a waiting parent looks whether the process lives: what it forked may hold the pipes open."""
_GRAPH, _REASON = b"G", b"R"
_MARK = b"fvexport"  # before each message: onnxsim may write to any descriptor


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
        raise OnnxsimError(answer[1:].decode(errors="replace"))
    with taking_answer():
        return onnx.ModelProto.FromString(answer[1:])


@contextlib.contextmanager
def taking_answer() -> Iterator[None]:
    """Turns every error of the block, which works on what onnxsim returned, into OnnxsimError.

    A lack of memory is not the answer's fault and passes on.
    """
    try:
        yield
    except (OnnxsimError, MemoryError):
        raise
    except Exception as error:  # a wrong graph can break any step
        raise OnnxsimError(f"onnxsim returned an invalid graph ({first_line(error)})") from error


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
            bufsize=0,  # closing waits for nobody
            start_new_session=True,  # Ctrl-C is the parent's to handle; and what it forks ends with it
        )  # fmt: skip
        if sys.platform != "win32":
            assert _child.stdin is not None
            os.set_blocking(_child.stdin.fileno(), False)
        _made_for = wanted
    return _child


@atexit.register
def _end() -> None:
    global _child  # as above
    child, _child = _child, None
    if child is not None and _made_for[0] == os.getpid():  # not what a forked process inherited
        _kill(child)
        for pipe in (child.stdin, child.stdout):  # not read to their ends, which others may hold
            if pipe is not None:
                pipe.close()
        child.wait()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it forked."""
    child.kill()
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: permission, of ended ones
            os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def _ended_unless_answered(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends the process after the time limit, or when the caller is interrupted: its answer would be the next one's."""
    timer = threading.Timer(LIMIT_S, _kill, [child])
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
    stdin, stdout = child.stdin, child.stdout
    with contextlib.suppress(OSError):  # it died: the missing answer says so
        _write_while_alive(child, stdin, _message(request))
    with taking_answer():
        answer = _read(lambda size: _read_while_alive(child, stdout, size))
    if answer is None:
        raise OnnxsimError(f"onnxsim {_death(child)}")
    return answer


def _write_while_alive(child: subprocess.Popen[bytes], stream: IO[bytes], content: bytes) -> None:
    left = memoryview(content)
    while left and _ready(child, stream, selectors.EVENT_WRITE):
        left = left[os.write(stream.fileno(), left) :]


def _read_while_alive(child: subprocess.Popen[bytes], stream: IO[bytes], size: int) -> bytes:
    """That many bytes; fewer where the process has ended."""
    found = bytearray()
    while len(found) < size and _ready(child, stream, selectors.EVENT_READ):
        part = os.read(stream.fileno(), min(size - len(found), 1 << 20))
        if not part:
            break
        found += part
    return bytes(found)


def _ready(child: subprocess.Popen[bytes], stream: IO[bytes], event: int) -> bool:
    """Waits until a pipe can be used; False if the process has ended, and left nothing in it."""
    if sys.platform == "win32":  # where pipes cannot be waited for, and nothing forks
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(stream, event)
        while True:
            ended = child.poll() is not None
            if selector.select(0 if ended else POLL_S):
                return True
            if ended:
                return False


def _death(child: subprocess.Popen[bytes]) -> str:
    """How a process ended that has closed its pipe, or been killed."""
    try:
        status = child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "closed its pipe without an answer"
    if status >= 0:
        return f"ended with exit code {status}"
    name = signal_name(-status)
    hint = f": no memory, or no answer in {LIMIT_S:.0f} s" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


# --- both sides -------------------------------------------------------------------------------------


def _message(content: bytes) -> bytes:
    return _MARK + len(content).to_bytes(8, "little") + content


def _read(read: Callable[[int], bytes]) -> bytes | None:
    """One message; None if the stream ends before it does."""
    head = read(len(_MARK) + 8)
    if not _MARK.startswith(head[: len(_MARK)]):
        raise ValueError("it wrote into our pipe")
    size = int.from_bytes(head[len(_MARK) :], "little")
    if len(head) < len(_MARK) + 8 or size == 0:
        return None
    if size > LONGEST:
        raise ValueError(f"{size} bytes")
    content = read(size)
    return content if len(content) == size else None


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
    while (request := _read(requests.read)) is not None:
        answer = _REASON + broken.encode(errors="replace") if broken else _answer(request)
        answers.write(_message(answer))
        answers.flush()


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
        if not checked:
            return _REASON + b"onnxsim's own check found other numbers"
        return _GRAPH + result.SerializeToString()
    except Exception as error:  # a bare RuntimeError from its C++
        return _REASON + f"onnxsim failed: {first_line(error)}".encode(errors="replace")
