"""How several options of a command become one parameter of its function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]


def add(*options: Decorator) -> Callable[[F], F]:
    """Decorates a command with options, listed by `--help` in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def names_of(*options: Decorator) -> tuple[str, ...]:
    """The names under which a command receives `options`."""
    command = click.command(add_help_option=False)(add(*options)(lambda: None))
    return tuple(str(param.name) for param in command.params)


def passed_as(parameter: str, make: Callable[..., Any], names: Iterable[str]) -> Callable[[F], F]:
    """Decorates a command that receives `make(**values)` of the options `names` as its `parameter`."""
    taken = tuple(names)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            values = {name: given.pop(name) for name in taken}
            return command(**given, **{parameter: make(**values)})

        return wrapped  # type: ignore[return-value]

    return decorate


def group(parameter: str, make: Callable[..., Any], *options: Decorator) -> Callable[[F], F]:
    """Decorates a command with options, which it receives as one object, `make(**values)`."""
    taken = names_of(*options)

    def decorate(command: F) -> F:
        return add(*options)(passed_as(parameter, make, taken)(command))

    return decorate


def refuse_given(names: Iterable[str], why: str) -> None:
    """Raises UsageError for the first of the current command's parameters `names` that was typed."""
    context = click.get_current_context()
    by_name = {param.name: param for param in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{by_name[name].opts[0]} {why}", context)
