"""What a build is asked for: read from text, checked, and told apart from what TensorRT lacks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvexport.core.errors import ConfigError, UnavailableError
from fvexport.core.records import parse, plain
from fvexport.export.engines.api import Api, install_command, load_api, version_tuple
from fvexport.export.engines.engine_options import (
    EngineOptions,
    Profile,
)
from fvexport.export.engines.trtexec_command import command_line

SPANS = st.lists(st.integers(1, 9), min_size=3, max_size=3).map(sorted).map(tuple)


@given(SPANS, SPANS, SPANS)
def test_a_profile_takes_what_lies_within(batch, height, width) -> None:
    profile = Profile(batch=batch, height=height, width=width)
    assert parse(json.loads(json.dumps(plain(profile))), Profile) == profile
    assert profile.shapes()[0] == (batch[0], 3, height[0], width[0])
    assert profile.static == (profile.shapes()[0] == profile.shapes()[2])
    for shape in profile.shapes():
        profile.check(shape[0], *shape[2:])
    for wrong in (
        (batch[2] + 1, height[1], width[1]),
        (batch[1], height[0] - 1, width[1]),
        (batch[1], 1, width[2] + 1),
    ):
        with pytest.raises(ConfigError, match=r"the engine takes (batch|height|width) \d.*; found \d+: build it"):
            profile.check(*wrong)


@given(st.permutations([1, 2, 3]).filter(lambda span: span != [1, 2, 3]).map(tuple))
def test_a_profile_that_does_not_grow(span) -> None:
    one = (1, 1, 1)
    for batch, height, width in ((span, one, one), (one, span, one), (one, one, span)):
        with pytest.raises(ConfigError, match="goes MIN:OPT:MAX, each at least the one before"):
            Profile(batch=batch, height=height, width=width)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flavour": "rtx"}, "unknown flavour 'rtx'"),
        ({"workspace": 0}, "--workspace must be positive"),
        ({"opt_level": 6}, "--opt-level goes from 0 to 5; found 6"),
        ({"strip": True, "version_compatible": True}, "--strip and --version-compatible exclude each other"),
    ],
)
def test_refused_options(options, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineOptions(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hardware_compatible": True}, "has no --hardware-compatible here: its engines run on any GPU from Ampere on"),
        ({"version_compatible": True}, "has no --version-compatible here: an engine of it runs on the same release"),
        ({"timing_cache": "x"}, "has no --timing-cache here"),
        ({"strip": True}, "has no --strip here: it leaves weights out only where it sees a GPU; leave it out"),
    ],
)
def test_what_rtx_lacks(rtx: Api, full: Api, options, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full.check(EngineOptions(**options))
    monkeypatch.undo()  # no GPU again
    with pytest.raises(UnavailableError, match=words):
        rtx.check(EngineOptions(**options))


def test_versions() -> None:
    assert version_tuple("10.13.3.9") == (10, 13, 3, 9)
    assert version_tuple("1.7.1.post1") == (1, 7, 1)


@pytest.mark.parametrize("flavour", [None, "tensorrt", "tensorrt-rtx"])
def test_none_installed(without_tensorrt: None, flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("fvexport.export.engines.api.has_cuda_gpu", lambda: True)
    with pytest.raises(UnavailableError, match=r"TensorRT(-RTX)? is not installed: `pip install tensorrt"):
        load_api(flavour)


def test_full_tensorrt_needs_a_gpu_to_build(tensorrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvexport.export.engines.api.has_cuda_gpu", lambda: False)
    with pytest.raises(UnavailableError, match=r"no NVIDIA GPU was found here; TensorRT-RTX builds anywhere"):
        load_api("tensorrt")
    assert load_api("tensorrt", to_build=False).flavour == "tensorrt"


def test_one_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "tensorrt_rtx", raising=False)
    with pytest.raises(UnavailableError, match=r"does not import \(libcudart\.so\.13: cannot open\)"):
        load_api("tensorrt-rtx")


@pytest.mark.parametrize(
    ("gpu", "jetson", "cuda", "flavour", "command"),
    [
        (False, False, None, None, "pip install tensorrt-rtx-cu13"),
        (True, False, 12, None, "pip install tensorrt-cu12"),
        (True, False, 13, "tensorrt", "pip install tensorrt-cu13"),
        (True, False, 12, "tensorrt-rtx", "pip install tensorrt-rtx-cu12"),
        (True, True, 12, None, "sudo apt-get install nvidia-tensorrt python3-libnvinfer"),
        (False, False, None, "tensorrt", "pip install tensorrt"),
    ],
)
def test_the_command_that_installs_it(gpu, jetson, cuda, flavour, command, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "fvexport.export.engines.api."
    monkeypatch.setattr(place + "has_cuda_gpu", lambda: gpu)
    monkeypatch.setattr(place + "_is_jetson", lambda: jetson)
    monkeypatch.setattr(place + "cuda_major", lambda: cuda)
    assert install_command(flavour) == command


@pytest.mark.parametrize("name", ["a b", "caf\udce9", "x\nrm -rf y", "it's", "$(id)", "é"])
def test_the_trtexec_line_is_one_line_that_bash_reads(name: str) -> None:
    profile = Profile(batch=(1, 1, 1), height=(128,) * 3, width=(128,) * 3)
    line = command_line("tensorrt", Path(name) / "m.onnx", Path("p"), profile, False, EngineOptions())
    assert line.isprintable()
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout.split(
        b"\0"
    )
    assert words[1] == b"--onnx=" + os.fsencode(f"{name}/m.onnx")
