"""Float32 stays float32, and PyTorch's settings come back as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.exact import exact_float32
from fvexport.encoder.fastvlm.vision import EagerTower


def found() -> dict[str, Any]:
    """Every setting that can be read."""
    readers: dict[str, Callable[[], Any]] = {
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "cublas": lambda: torch.backends.cuda.matmul.allow_tf32,
        "matmul": torch.get_float32_matmul_precision,
    }
    if hasattr(torch.backends.cudnn, "conv"):
        readers |= {
            "cudnn conv": lambda: torch.backends.cudnn.conv.fp32_precision,
            "cudnn rnn": lambda: torch.backends.cudnn.rnn.fp32_precision,
            "cuda matmul": lambda: torch.backends.cuda.matmul.fp32_precision,
            "mkldnn conv": lambda: torch.backends.mkldnn.conv.fp32_precision,
            "mkldnn matmul": lambda: torch.backends.mkldnn.matmul.fp32_precision,
        }
    result = {}
    for name, read in readers.items():
        try:
            result[name] = read()
        except RuntimeError:
            result[name] = "refused"
    return result


def conv_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = True


def high() -> None:
    torch.set_float32_matmul_precision("high")


def medium() -> None:
    torch.set_float32_matmul_precision("medium")


def generic() -> None:
    torch.backends.fp32_precision = "tf32"


def conv_alone() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # the older switch cannot be read any more


def matmul_alone() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


NEWER = (generic, conv_alone, matmul_alone)


@pytest.fixture(autouse=True)
def pristine() -> Iterator[None]:
    """As a new process has them."""

    def reset() -> None:
        if hasattr(torch.backends, "fp32_precision"):
            torch.backends.fp32_precision = "none"
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")

    reset()
    yield
    reset()


@pytest.mark.parametrize("setting", [lambda: None, conv_tf32, high, medium, *NEWER])
def test_everything_is_off_within_and_restored_after(setting: Callable[[], None]) -> None:
    if setting in NEWER and not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this PyTorch has no fp32_precision")
    setting()
    before = found()
    with exact_float32():
        within = found()
    assert within["cudnn"] is within["cublas"] is False and within["matmul"] == "highest"
    assert {value for name, value in within.items() if " " in name} <= {"ieee", "none"}
    assert found() == before


def test_products_are_float32s_own() -> None:
    """On a CPU with bfloat16 units "medium" rounds products to 8 bits: real rounding, without a GPU."""
    a, b = torch.rand(64, 512), torch.rand(512, 64)
    wanted = a.double() @ b.double()

    def error() -> float:
        return float(((a @ b).double() - wanted).norm() / wanted.norm())

    torch.set_float32_matmul_precision("medium")
    with exact_float32():
        assert error() < 1e-6
    if torch.cpu._is_avx512_bf16_supported():
        assert error() > 1e-5


def test_restored_after_an_error_and_by_the_last_of_nested_uses() -> None:
    torch.set_float32_matmul_precision("high")
    before = found()
    with pytest.raises(ZeroDivisionError), exact_float32():
        raise ZeroDivisionError
    assert found() == before
    with exact_float32():
        with exact_float32():
            pass
        assert found()["cudnn"] is False
    assert found() == before


def test_another_thread_that_ends_first_does_not_restore() -> None:
    before = found()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exact_float32():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with exact_float32():
        leave.set()
        thread.join()
        assert found()["cudnn"] is False
    assert found() == before


def test_fastvlms_encoder_runs_without_tf32() -> None:
    encoder = load_checkpoint(variant="tiny").encoder
    seen: list[bool] = []
    encoder.final_conv.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    EagerTower(encoder).encode(torch.zeros(1, 3, 64, 64))
    assert seen == [False] and torch.backends.cudnn.allow_tf32
