"""Every name of TensorRT that our code uses exists in the real bindings: of 10, 11 and RTX, whichever a user has.

The code is read, not run, so that a name on a path which needs a GPU counts too. What is read: `trt.…` and `trtp.…`
(`tensorrt.plugin`), attributes of variables that are called after their class (`OBJECTS`; in `export/` alone, since a
kernel's `config` is another), and builder flags given as text to `set_flag`.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted(
    file
    for pattern in ("export/engines/*.py", "export/runtime/tensorrt*.py", "kernels/tensorrt*.py")
    for file in ROOT.glob(pattern)
)
OBJECTS = {
    "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "parser": "OnnxParser",
    "engine": "ICudaEngine", "context": "IExecutionContext", "inspector": "EngineInspector", "runtime": "Runtime",
    "refitter": "Refitter", "weights": "OnnxParserRefitter",
}  # fmt: skip
VERSIONS = ("tensorrt", "tensorrt_rtx", "10.3.0", "10.9.0.34", "10.13.3.9")

WITHOUT_PLUGINS = ("10.3.0", "tensorrt_rtx")
"""Have no `tensorrt.plugin`, which what needs it has to ask for first."""

GUARDED: dict[str, tuple[str, ...]] = {
    "DynamicShapesKernelSpecializationStrategy.EAGER": ("tensorrt", "10.3.0", "10.9.0.34", "10.13.3.9"),
    "ICudaEngine.create_runtime_config": ("10.3.0", "10.9.0.34"),
}
"""Other names that some versions lack -> these versions; the code asks before it uses them."""

PROBE = """
import importlib, json, sys
wanted = json.load(sys.stdin)
trt = importlib.import_module(wanted["module"])
def lacks(name):
    parts = name.split(".")
    there = trt
    if parts[0] == "plugin":
        try:
            there, parts = importlib.import_module(wanted["module"] + ".plugin"), parts[1:]
        except ImportError:
            return True
    for part in parts:
        if not hasattr(there, part):
            return True
        there = getattr(there, part)
    return False
lacking = [name for name in wanted["names"] if lacks(name)]
print(json.dumps(lacking))  # last: importing tensorrt.plugin writes to stdout
"""


def used_by(file: Path) -> set[str]:
    names = used(file.read_text(encoding="utf-8"))
    own = {name for name in names if name.split(".")[0] in OBJECTS.values()}
    return names - own if file.is_relative_to(ROOT / "kernels") else names


def used(source: str) -> set[str]:
    """Names below `trt` that a file's source uses: `Builder`, `BuilderFlag.REFIT`, `plugin.aot_impl`."""
    tree = ast.parse(source)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            names.update(_below(_chain(node)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "set_flag":
            flags = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            names.update(f"BuilderFlag.{flag}" for flag in flags if flag.isupper())
    return names


def _chain(node: ast.expr) -> list[str]:
    """`self.trt.Builder` -> its parts; what is not a plain name (a call's result) is left out."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def _below(chain: list[str]) -> Iterator[str]:
    # The variable, or an attribute of ours that is called so: `trt.X`, `api.trt.X`, `self.context.X`.
    for position, part in enumerate(chain[:-1]):
        rest = chain[position + 1 :]
        ours = position == 0 or chain[0] in ("self", "api")
        if part == "trt" and ours:
            yield ".".join(rest)
            return
        if part == "trtp" and ours:
            yield ".".join(["plugin", *rest])
            return
        if part in OBJECTS and (position == 0 or chain[:position] == ["self"]):
            yield f"{OBJECTS[part]}.{rest[0]}"
            return


def _guarded(name: str) -> tuple[str, ...]:
    return WITHOUT_PLUGINS if name.startswith("plugin.") else GUARDED.get(name, ())


@pytest.fixture(scope="session")
def lacking(tensorrt_folders: dict[str, Path]) -> dict[str, set[str]]:
    """By version: what it has not of the names that our files use, and of those that the tests know."""
    used_names = {name for file in FILES for name in used_by(file)}
    names = sorted(used_names | NEVER | ONLY_10 | PLUGINS | ALWAYS)
    found = {}
    for version in VERSIONS:
        if version not in tensorrt_folders:  # of Python 3.13 and later the first TensorRT 10 has no wheel
            continue
        module = "tensorrt_rtx" if version == "tensorrt_rtx" else "tensorrt"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE], input=json.dumps({"module": module, "names": names}),
            env={"PYTHONPATH": str(tensorrt_folders[version])}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[version] = set(json.loads(done.stdout.splitlines()[-1]))
    return found


NEVER = {"Builder.build", "BuilderFlag.FP5", "plugin.nothing"}
ONLY_10 = {"BuilderFlag.INT8", "BuilderFlag.FP16", "IInt8EntropyCalibrator2", "OnnxParser.supports_model"}
PLUGINS = {"plugin.aot_impl"}
ALWAYS = {"Builder.build_serialized_network", "BuilderFlag.STRIP_PLAN", "DataType.BF16", "OnnxParser.parse_from_file"}


def test_the_bindings_are_asked(lacking: dict[str, set[str]]) -> None:
    for version, names in lacking.items():
        assert names >= NEVER, version
        assert not names & ALWAYS, version
        assert bool(names & PLUGINS) == (version in WITHOUT_PLUGINS)
        assert (names & ONLY_10) == (set() if version.startswith("10") else ONLY_10), version


def test_names_are_read_from_source() -> None:
    source = """
def build(api, trt, self):
    builder = api.trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    api.set_flag(config, "REFIT", "--refit")
    self.context.execute_async_v3(0)
    self.model.config.hidden_size
    @trtp.aot_impl("a")
    def f(): ...
"""
    assert used(source) == {
        "Builder", "Builder.create_builder_config", "Logger", "Logger.ERROR", "MemoryPoolType.WORKSPACE",
        "IBuilderConfig.set_memory_pool_limit", "BuilderFlag.REFIT", "IExecutionContext.execute_async_v3",
        "plugin.aot_impl",
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_exists(file: Path, lacking: dict[str, set[str]]) -> None:
    names = used_by(file)
    for version, lacks in lacking.items():
        missing = {name for name in names & lacks if version not in _guarded(name)}
        assert not missing, f"{file.name} uses what TensorRT {version} has not"
