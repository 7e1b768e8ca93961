"""onnxruntime behind the Python backend of Triton Inference Server; test_real_triton_server.py puts it there.

It reads of config.pbtxt what the server's onnxruntime backend reads: the file's name, tensors and thread counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        return config

    def initialize(self, args: dict[str, str]) -> None:
        import onnxruntime as ort

        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        if threads := config["parameters"].get("intra_op_thread_count"):
            options.intra_op_num_threads = int(threads["string_value"])
        file = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = ([tensor["name"] for tensor in config[kind]] for kind in ("input", "output"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        # By DLPack: the arrays of a Python backend that was built for NumPy 1 are empty with NumPy 2.
        feed = {name: np.from_dlpack(utils.get_input_tensor_by_name(request, name)).copy() for name in self.inputs}
        self.kept = found = self.session.run(self.outputs, feed)  # until the next answer: it is read after this call
        tensors = [utils.Tensor.from_dlpack(*pair) for pair in zip(self.outputs, found, strict=True)]
        return utils.InferenceResponse(tensors)
