"""FastViTHD, the vision encoder of FastVLM: load it, export it, prove the export, run it.

    import fvexport

    report = fvexport.export_onnx("apple/FastVLM-0.5B", "build/fastvithd-1024")  # without a name: random weights
    print(report.verdict)  # how far the artifact is from PyTorch
    features = fvexport.Encoder(report.artifact)("photo.jpg")  # (1, 256, 3072) float32

Names load on first use, so that `import fvexport` costs nothing.
"""

import lazy_loader as _lazy

from .core import telemetry as _telemetry

__version__ = "0.1.0"

_telemetry.set_switches()  # before any of them is imported

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
