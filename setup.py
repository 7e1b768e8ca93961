"""Installs this repository as one package, `fvexport`: `encoder/` is `fvexport.encoder`, and so on down.

The folders have plain names because they are read more often than imported; installed under those names, `export` or
`kernels` would clash with other packages. A new folder needs no edit here and no new installation.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
NAME = "fvexport"

VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "__init__.py").read_text("utf-8"), re.M)[1]

# The second needs `tests/data`.
EXCLUDED = ["tests", "tests.*", "benchmarks.studies.trained"]

PACKAGES = [NAME, *(f"{NAME}.{package}" for package in find_packages(str(ROOT), exclude=EXCLUDED))]


class BuildWithoutSetup(build_py):
    """Leaves `setup.py`, which lies in the package's folder, out of the package."""

    def find_package_modules(self, package, package_dir):
        """The modules of one package, as (package, module, file)."""
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[:2] != (NAME, "setup")]


# The GPU build of ONNX Runtime runs on the CPU too. Never both builds: they write the same folder.
RUNTIME = [
    'onnxruntime-gpu>=1.20; sys_platform == "linux" and platform_machine == "x86_64"',
    'onnxruntime>=1.20; sys_platform != "linux" or platform_machine != "x86_64"',
]

# The first that reads our fp16 files.
OPENVINO = ["openvino>=2025.0"]

# The page of `fvexport sweep` and `fvexport report`.
REPORT = ["jinja2>=3.1", "markupsafe>=2.1", "matplotlib>=3.9", "scipy>=1.11"]

# The language model behind the encoder: Qwen2 and its tokenizer.
VLM = ["transformers>=5"]

# The first is what torch 2.8 came with. torch's default build for Linux brings the version that it pins. There are no
# wheels elsewhere; the kernels' functions compute in PyTorch there.
TRITON = ['triton>=3.4; sys_platform == "linux" and platform_machine in "x86_64 aarch64"']

# TensorRT has no extra: which of its packages fits depends on the machine, and `fvexport trt` names it. The CUDA
# libraries of ONNX Runtime need none: torch's default build for Linux brings the same ones.
EXTRAS = {
    "openvino": OPENVINO,
    "report": REPORT,
    "triton": TRITON,
    "vlm": VLM,
    "dev": [
        *OPENVINO,
        *REPORT,
        *TRITON,
        *VLM,
        "build",
        "hypothesis",
        "mypy",
        # Drives the system's Chromium, in which the report is tested; its own browsers need not be downloaded.
        "playwright>=1.50",
        "pre-commit",
        "pre-commit-hooks",
        "pytest>=8",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        # The schema of Triton Inference Server's config.pbtxt. Later ones forbid ml-dtypes 0.6.
        "tritonclient<2.70",
    ],
}

setup(
    name=NAME,
    version=VERSION,
    description="Export, check and measure FastViTHD, the vision encoder of FastVLM",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=PACKAGES,
    package_dir={NAME: "."},
    cmdclass={"build_py": BuildWithoutSetup},
    package_data={
        NAME: ["py.typed"],
        f"{NAME}.benchmarks.gpu.predicted": ["*.json"],
        f"{NAME}.benchmarks.report": ["*.j2", "*.css", "*.js"],
        f"{NAME}.kernels": ["configs/*.json"],
    },
    entry_points={"console_scripts": ["fvexport = fvexport.cli.main:main"]},
    install_requires=[
        "torch>=2.8",
        "numpy>=1.26",
        "onnx>=1.18",
        "onnxscript>=0.5",
        "onnxsim>=0.4.36",
        *RUNTIME,
        "safetensors>=0.4.3",
        "huggingface_hub>=0.26",
        "pillow>=10.1",
        "click>=8.1",
        # Frozen structs for the files that one command writes and another reads.
        "msgspec>=0.19",
        "rich>=13.0",
        "lazy_loader>=0.4",
        # Its wheel carries the photographs that parity compares on where the user names none.
        "scikit-image>=0.22",
    ],
    extras_require=EXTRAS,
)
