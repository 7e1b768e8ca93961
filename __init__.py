"""FastViTHD, the vision encoder of FastVLM: load it, export it, prove the export, run it.

    import fvexport

    report = fvexport.export_onnx("apple/FastVLM-0.5B", "build/fastvithd-1024")  # without a name: random weights
    print(report.verdict)  # how far the artifact is from PyTorch
    features = fvexport.Encoder(report.artifact)("photo.jpg")  # (1, 256, 3072) float32

Names load on first use, so that `import fvexport` costs nothing.
"""

import os as _os

__version__ = "0.1.0"

# onnxruntime from 1.31, which also writes a warning without a home folder, and huggingface_hub read these when they are
# imported. No module of ours does it: until the command has its signal handlers, Ctrl-C prints a traceback.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    _os.environ.setdefault(_name, "1")


# Where `fvexport.ray` is; see there why it is no folder of its own.
__path__.append(_os.path.join(_os.path.dirname(__file__), "aliases"))  # noqa: PTH118, PTH120 - pathlib costs milliseconds


def __getattr__(name: str) -> object:
    import lazy_loader  # here, since the command handles signals before it imports anything else

    names = ("__getattr__", "__dir__", "__all__")
    globals().update(zip(names, lazy_loader.attach_stub(__name__, __file__), strict=True))
    return globals()[name] if name in names else globals()["__getattr__"](name)


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))  # type: ignore[call-overload]
