"""The schema of Triton Inference Server's config.pbtxt, for tests in several folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def load_schema() -> Any:
    """The messages as the server's client ships them; its package would import gRPC, which is not needed."""
    (package,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(package) / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
