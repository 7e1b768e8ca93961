"""Measurements: speed claims, each with the command that reproduces it.

What lives here
    paired          timing of several candidates side by side, in one run
    plain_onnx      our ONNX file against a plain `torch.onnx.export` of the same model
    kernels         each Triton kernel and the encoder on them against PyTorch, on a GPU
    int8_rivals     our INT8 files against other tools', by error and time (its parts: rivals/)
    int8_steps      what each step of our quantization buys
    trained_tiny    a small model trained on a real task, and its accuracy
    ttft            time to first token by part, with a language model of the released dimensions
    vlm             FastVLM whole, eager, FP32 and INT8: time to first token, memory, agreement
    tasks/          VQA, captions and retrieval on the user's data; a conversation, a batch, their profile
    sweep/          resolutions x backends x precisions, each cell in its own process
    gpu/            the encoder on an NVIDIA GPU: the performance model, and one command that proves it
    peers           the plain ways beside ours in a sweep
    report/         the page that results of sweeps become, and differences between runs
    results/        measurements as JSON, with the environment they were taken in

May import everything but `cli`; is imported by `cli` alone.
"""
