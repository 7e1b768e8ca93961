"""Versions of what is installed, without importing it."""

from __future__ import annotations

from importlib import metadata


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def versions_of(*distributions: str) -> dict[str, str]:
    """The installed ones among `distributions`, with their versions."""
    return {name: version for name in distributions if (version := version_of(name)) is not None}
