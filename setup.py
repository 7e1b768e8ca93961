"""Installs this repository as one package, `fvexport`: `encoder/` is `fvexport.encoder`, and so on down.

The folders have plain names because they are read more often than imported; installed under those names, `export` or
`kernels` would clash with other packages. A new folder needs no edit here, and no new installation where this one is
editable. Names, versions and dependencies are in pyproject.toml.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithoutSetup(build_py):
    """Leaves `setup.py`, which lies in the package's folder, out of the package."""

    def find_package_modules(self, package, package_dir):
        """The modules of one package, as (package, module, file)."""
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[:2] != ("fvexport", "setup")]


# The second needs `tests/data`.
EXCLUDED = ["tests", "tests.*", "benchmarks.studies.trained"]

setup(
    packages=["fvexport", *(f"fvexport.{name}" for name in find_packages(exclude=EXCLUDED))],
    cmdclass={"build_py": BuildWithoutSetup},
)
