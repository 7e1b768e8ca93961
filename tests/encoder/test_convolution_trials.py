"""Algorithms of convolutions are tried on a GPU alone, and the setting comes back."""

from __future__ import annotations

import pytest
import torch

from fvexport.encoder.convolution_trials import cudnn_trials


@pytest.mark.parametrize(("device", "tried"), [("cuda", True), ("cpu", False)])
def test_tried_on_a_gpu_alone(device: str, tried: bool) -> None:
    with cudnn_trials(torch.device(device)):
        assert torch.backends.cudnn.benchmark is tried
    with pytest.raises(ZeroDivisionError), cudnn_trials(torch.device(device)):
        raise ZeroDivisionError
    assert torch.backends.cudnn.benchmark is False


def test_what_the_user_set_stays() -> None:
    torch.backends.cudnn.benchmark = True
    try:
        for device in ("cuda", "cpu"):
            with cudnn_trials(torch.device(device)):
                assert torch.backends.cudnn.benchmark
            assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
