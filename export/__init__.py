"""From a model to a file that runs elsewhere, and the proof that it is the same model.

What lives here
    export_options  the options of an export, checked before anything expensive
    precision       the precisions of an artifact
    limits          the largest sizes of files and engines
    tensor_names    the names of its input and output
    requests        an export or an engine build as one object
    tracing         PyTorch module -> ONNX graph, quietly and with readable names
    attention_plugin  attention as one node, for TensorRT's plugin
    passes          our own graph clean-up, and onnxsim, with weights standing aside
    simplification  whether the simplified graph is taken
    onnxsim_process  onnxsim in a process of its own
    rules           what every exported graph must look like
    clock           seconds of each phase
    onnx_export     the main job: checkpoint -> artifact
    engine_export   the same, ending in a TensorRT engine
    reuse           whether an artifact that stands there is what would be exported
    engines/        building engines, and what was built
    manifest        what an artifact says of itself
    artifact_source
                    from an artifact back to its checkpoint, and to the module that was exported
    prepare         from a checkpoint to the module that is exported: fused, inside FP16, quantized
    artifact        the folder: opened with checks, written whole or not at all
    onnx_file       what its graph may contain
    model_file      its graph for libraries that refuse links and names that are not UTF-8
    parity          the verdict: artifact against the eager model
    parity_runs     what it runs: photographs in batches
    parity_backends  what it runs them on: backends with inner tensors, and with half precision emulated
    triton_server   an artifact as a model of Triton Inference Server
    server_options  its instances and threads
    inspection      operators, parameters, multiply-adds and activations of an artifact
    operators       the fused encoder operator by operator: sizes, multiply-adds, weights
    roofline        bytes, operations and the floor of each block, and what fusing removes
    features        many images -> one safetensors file, in bounded memory
    drop_in         `patch`: an artifact in the place of a loaded FastVLM's vision tower
    backend_table   the table of backends: what each runs, and what it needs
    placement       the backend that `auto` takes, and what is slow or inexact on this machine
    quantized_module
                    a quantized artifact's own scales and weights, as a module
    saturation      weights whose 8-bit products saturate on CPUs without VNNI
    runtime/        one small class per place, behind `Encoder`

May import `encoder`, `kernels` and `calibration`; may be imported by `benchmarks` and `cli`.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
