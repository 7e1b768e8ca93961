"""Whether a simplified graph is taken: it must keep our rules and give the traced graph's numbers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..core.errors import ArtifactError, ExportError
from ..core.hardware import quota_threads
from ..core.utf8_path import utf8_path
from ..core.verdict.figures import compare
from ..core.verdict.judging import THRESHOLDS
from ..encoder.config import FastViTHDConfig
from .artifact import DATA_FILE, MODEL_FILE
from .export_options import ExportOptions
from .manifest import GraphSection
from .onnxsim_process import OnnxsimError, taking_answer
from .passes import name_dimensions, simplify, structure, tidy
from .rules import check_rules
from .runtime.emulate_half import with_rounding
from .runtime.onnxruntime_backend import EXTERNAL_FOLDER, QDQ_AS_WRITTEN

INLINE_BYTES = 1024
"""Tensors under this size stay in the graph's file; shape inference must see them."""


def write_graph(model: ir.Model, folder: Path) -> None:
    """Writes the graph and, beside it, its weights."""
    ir.save(model, folder / MODEL_FILE, external_data=DATA_FILE, size_threshold_bytes=INLINE_BYTES)


def simplified(model: ir.Model, options: ExportOptions, config: FastViTHDConfig) -> tuple[ir.Model, GraphSection]:
    """Our clean-up, then onnxsim where it is asked for and does no harm; and the manifest's section on it."""
    traced = len(model.graph)
    tidy(model)
    kept = None
    if options.simplify:
        other, kept = simplify(model)
        kept = kept or _spoiled(model, other, options, config)
        if kept is None:
            model = other
    name_dimensions(model)
    return model, GraphSection(
        nodes_traced=traced,
        nodes=len(model.graph),
        kept_unsimplified=f"the graph was not simplified: {kept}" if kept else None,
    )


def _spoiled(before: ir.Model, after: ir.Model, options: ExportOptions, config: FastViTHDConfig) -> str | None:
    """Why the simplified graph is not to be used, or None."""
    old = structure(before)
    try:
        with taking_answer():
            new = structure(after)
            try:
                check_rules(new, config, projector=options.projector, attention_plugin=options.attention_plugin)
            except ExportError:
                return "onnxsim's graph breaks our rules"
            onnx.checker.check_model(new, full_check=True)  # as the file will be
            if _borders(new) != _borders(old):
                raise ValueError("it has other inputs or outputs")
            same_content = _content(new) == _content(old)
            name_dimensions(after)  # the caller does it again, where an error would end the export
    except OnnxsimError as error:
        return str(error)
    if same_content:
        return None
    try:
        same = _output(after, options), _output(before, options)
        close = THRESHOLDS[options.precision].are_equal(compare(*same))
    except OSError as error:
        raise ArtifactError(
            f"cannot write temporary files in {tempfile.gettempdir()} ({error.strerror}); free some space, set TMPDIR, "
            "or export with --no-simplify"
        ) from error
    except ModuleNotFoundError:
        return "onnxruntime, which would compare it, is not installed"
    except MemoryError:
        raise
    except Exception:  # onnxruntime's exceptions share no public base; a graph that does not run is not the same
        close = False
    return None if close else "onnxsim changed the numbers"


def _borders(model: onnx.ModelProto) -> list[Any]:
    """Names, types and numbers of axes of what goes in and comes out."""
    return [
        sorted((v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in values)
        for values in (model.graph.input, model.graph.output)
    ]


def _content(model: onnx.ModelProto) -> list[Any]:
    """What a graph computes, whatever the order and names of its nodes."""
    constants = {t.name: (t.data_type, tuple(t.dims), t.raw_data) for t in model.graph.initializer}
    return sorted(
        repr(
            (
                node.op_type,
                [constants.get(name, name) for name in node.input],
                list(node.output),
                sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute),
            )
        )
        for node in model.graph.node
    )


def _output(model: ir.Model, options: ExportOptions) -> np.ndarray:
    """The features of one seeded input at the size that the graph was traced for."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, utf8_path(folder) as place:
        write_graph(model, Path(folder))
        proto = onnx.load(str(Path(folder) / MODEL_FILE), load_external_data=False)
        if options.float_precision != "fp32":
            proto = with_rounding(proto, options.float_precision)
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = quota_threads() or 0
        settings.add_session_config_entry(EXTERNAL_FOLDER, place)
        if options.precision == "fp8":
            settings.add_session_config_entry(QDQ_AS_WRITTEN, "1")
        session = ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        shape = (options.batch or 1, 3, options.height, options.width)
        levels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        feed = levels if entry.type == "tensor(uint8)" else levels.astype(np.float32) / 255
        return session.run(None, {entry.name: feed})[0].astype(np.float32)
