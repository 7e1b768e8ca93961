"""PyTorch module -> ONNX graph, through `torch.onnx.export(dynamo=True)`.

The exporter knows nothing of how the module was optimized: it writes down what it is given.
Nodes and block outputs are named after the module that made them (`stages.3.blocks.0`), so
that a runtime's layer table, Netron and our own reports speak of the same parts.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.dtypes import torch_dtype
from ..core.errors import ExportError, first_line, root_cause
from ..encoder.connector import Connector
from ..encoder.fastvithd import FastViTHD
from .attention_plugin import add_function, with_attention_plugin
from .export_options import ExportOptions
from .tensor_names import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPES_KEY = "pkg.torch.onnx.name_scopes"


class ExportModule(nn.Module):
    """What is exported: casts of its input and output, the fused encoder, and the connector if asked for.

    `pixel_values` (B, 3, H, W) float32, the model's dtype or uint8 -> `image_features` (B, N, C).
    """

    def __init__(self, encoder: FastViTHD, connector: Connector | None, options: ExportOptions) -> None:
        super().__init__()
        dtype = torch_dtype(options.float_precision)
        self.dtype = dtype
        self.io_dtype = torch.float32 if options.io == "fp32" else dtype
        self.encoder = (with_attention_plugin(encoder) if options.attention_plugin else encoder).to(dtype)
        self.connector = None if connector is None else connector.to(dtype)
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C)."""
        x = pixel_values if self.encoder.uint8_input else pixel_values.to(self.dtype)
        x = self.encoder(x)
        if self.connector is not None:
            x = self.connector(x)
        return x.to(self.io_dtype)

    def example(self, options: ExportOptions) -> Tensor:
        """An input to trace with.

        Dynamic sizes are traced at values that equal no other, and at two tokens or more: torch
        takes a size of one for a constant.
        """
        height, width = options.height, options.width
        if options.dynamic_res:
            stride = self.encoder.config.stride
            height, width = max(height, 2 * stride), max(width, 2 * stride) + stride
        shape = (options.batch or 2, 3, height, width)
        if self.encoder.uint8_input:
            return torch.zeros(shape, dtype=torch.uint8)
        return torch.zeros(shape, dtype=self.io_dtype)


def trace(module: ExportModule, options: ExportOptions) -> ir.Model:
    """The ONNX graph of `module` under `options`; weights are shared with the module, not copied.

    Raises:
        ExportError: torch.onnx could not write the module down (a bug, or a module of the caller's).
    """
    stride = module.encoder.config.stride
    dynamic: dict[int, Any] = {}
    if options.batch is None:
        dynamic[0] = torch.export.Dim("batch")
    if options.dynamic_res:
        dynamic[2] = stride * torch.export.Dim("height_tokens")
        dynamic[3] = stride * torch.export.Dim("width_tokens")
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (module.example(options),),
                dynamo=True,
                opset_version=options.effective_opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=(dynamic,) if dynamic else None,
                custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = first_line(root_cause(error))  # its own message says only which of its steps failed
            raise ExportError(f"torch.onnx could not export the model: {reason}") from error
    assert program is not None
    model = program.model
    name_after_modules(model, [name for name, _ in module.encoder.named_blocks()])
    if options.attention_plugin:
        add_function(model, options.effective_opset)
    return model


def name_after_modules(model: ir.Model, blocks: list[str]) -> None:
    """Names nodes `<module>/<operator>` and each block's output after the block."""
    from onnx_ir import DataType

    last: dict[str, Any] = {}
    taken: dict[str, int] = {}
    for node in model.graph:
        scope = _scope(node)
        block = next((b for b in blocks if scope == b or scope.startswith(b + ".")), None)
        if block and node.outputs[0].dtype != DataType.INT64:  # a size of what comes next
            last[block] = node
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        taken[base] = taken.get(base, 0) + 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        node.metadata_props.clear()
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        value.name = value.name.removeprefix("encoder.")
    for block, node in last.items():
        if node.outputs[0].name != OUTPUT_NAME:
            node.outputs[0].name = block


def _scope(node: ir.Node) -> str:
    """The module that made a node: `stages.3.blocks.0.mlp.fc1`, or '' for our casts of inputs and outputs."""
    scopes = node.metadata_props.get(SCOPES_KEY, "")
    names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    modules = names[:-1]  # the last is the FX node's own name
    return modules[-1].removeprefix("encoder").removeprefix(".") if modules else ""


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """softmax(q k^T) v with q scaled already: the chain that every runtime's fusion recognizes."""
    from onnxscript import opset18 as op

    if attn_mask is not None or is_causal or dropout_p or enable_gqa or scale != 1.0:
        raise ExportError("attention must be plain, with the scale folded into q; call reparameterize(model) first")
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch.onnx's remarks (a missing torchvision, deprecations inside torch) off the terminal."""
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")
    loggers = {name: logging.getLogger(name) for name in names}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
