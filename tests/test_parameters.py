"""No function or command takes more than eight parameters: values that belong together are passed as one object."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("aliases", "benchmarks", "calibration", "cli", "cluster", "core", "encoder", "export", "kernels")
MOST = 8

EXEMPT = ("jit", "triton.jit", "torch.library.custom_op", "register_fake")
"""Decorators of functions that cannot take objects.

Triton compiles kernels, and the functions they call, with one parameter for each pointer, size and constant. The schema
of an operator that is registered with torch holds tensors and numbers only.
"""


STEPS = ("cluster/encode_images.py",)
"""Steps of a pipeline, whose options Ray passes one by one (`fn_constructor_kwargs`)."""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions that are not exempt, inner ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
            if not any(ast.unparse(decorator).endswith(EXEMPT) for decorator in decorators):
                yield node


def count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters that a caller passes: without `self` and `cls`; `*args` and `**kwargs` count once each."""
    args = function.args
    named = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg) if a is not None]
    return len(named) - (named[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_takes_more_than_eight_parameters(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(ROOT)}:{function.lineno} {function.name} takes {count(function)}"
        for file in files
        for function in functions(ast.parse(file.read_text("utf-8")))
        if count(function) > MOST and (function.name != "__init__" or file.relative_to(ROOT).as_posix() not in STEPS)
    ]
    assert not found, "\n".join(found)


def test_parameters_are_counted() -> None:
    source = """
class A:
    def method(self, a, /, b, *args, c=1, **kwargs): ...

@jit
def kernel(a, b, c): ...

@torch.library.custom_op("a::b", mutates_args=())
def operator(a, b, c):
    def inner(a, b): ...
"""
    assert {function.name: count(function) for function in functions(ast.parse(source))} == {"method": 5, "inner": 2}
