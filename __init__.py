"""FastViTHD, the vision encoder of FastVLM: load it, export it, prove the export, run it.

    import fvexport

    report = fvexport.export_onnx("apple/FastVLM-0.5B", "build/fastvithd-1024")  # without a name: random weights
    print(report.verdict)  # how far the artifact is from PyTorch
    features = fvexport.Encoder(report.artifact)("photo.jpg")  # (1, 256, 3072) float32

Names load on first use, so that `import fvexport` costs nothing.
"""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "encoder.checkpoint": ["load_checkpoint", "load_encoder"],
        "encoder.fastvlm": ["load_fastvlm"],
        "export.artifact": ["Artifact"],
        "export.engine": ["export_trt"],
        "export.onnx": ["export_onnx"],
        "export.options": ["ExportOptions"],
        "export.drop_in": ["patch"],
        "export.parity": ["check_parity"],
        "export.runtime": ["Encoder"],
        "core.errors": ["FvexportError"],
    },
)
