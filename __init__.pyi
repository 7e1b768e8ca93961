from .core.errors import FvexportError as FvexportError
from .encoder.checkpoint import load_checkpoint as load_checkpoint
from .encoder.checkpoint import load_encoder as load_encoder
from .encoder.fastvlm import load_fastvlm as load_fastvlm
from .export.artifact import Artifact as Artifact
from .export.drop_in import patch as patch
from .export.engine_export import export_trt as export_trt
from .export.export_options import ExportOptions as ExportOptions
from .export.onnx_export import export_onnx as export_onnx
from .export.parity import check_parity as check_parity
from .export.runtime import Encoder as Encoder

__version__: str
