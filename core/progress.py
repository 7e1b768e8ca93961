"""The one callback through which long work reports how far it is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """Called as `progress(task, done, total)`; `total` is None where it is not known."""

    def __call__(self, task: str, done: int, total: int | None) -> None: ...


@runtime_checkable
class NotedProgress(Progress, Protocol):
    """A `Progress` that also shows a few words on how the task goes, such as its pace."""

    def note(self, text: str) -> None:
        """Called before the call that they belong to."""
        ...


def silent(task: str, done: int, total: int | None) -> None:
    """The default of every library call: says nothing."""
