"""Running an artifact: one small class per place, all behind `Encoder`.

    base            what every backend is: pixel_values in, image_features out
    onnxruntime_backend
                    CPU, CUDA, TensorRT and TensorRT-RTX through onnxruntime
    tensorrt_backend
                    an engine that `fvexport trt` built, on torch's GPU memory
    openvino_backend
                    Intel's and other CPUs through OpenVINO
    backends        which of them runs a target
    emulate_half    half precision on hardware that has none, value by value
    eager_backend   the PyTorch model itself, as the reference of every comparison
    pytorch_backend
                    the model of an artifact's checkpoint: eager, torch.compile, and our own kernels
    pixels          which pixels an artifact takes, whatever the backend
    pickling        sessions between processes: pickled by path, refused after a fork
    upload          pixels from the host to a GPU, as the bytes they are
    encoder         `Encoder`: images in, features out, whatever runs underneath
    vision_tower    an artifact in the place of FastVLM's vision tower

May import `export`, `kernels` and `encoder`; is imported by `export.parity`, `benchmarks` and `cli`.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
