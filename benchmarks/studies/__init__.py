"""Studies: what a claim in the docs rests on, each with the command that reproduces it.

No command of `fvexport` uses them. What lives here
    plain_onnx      our ONNX file against a plain `torch.onnx.export` of the same model
    int8_rivals     our INT8 files against other tools', by error and time (its parts: rivals/)
    int8_steps      what each step of our quantization buys
    fp16_overflow   FP16 where FP16 overflows, naively and by us
    torch_loss      what PyTorch itself loses in each precision: where parity's thresholds come from
    trained/        a small model trained on a real task, and what quantization costs it
    vlm             FastVLM whole, eager, FP32 and INT8: time to first token, memory, agreement
    overhead        what `Encoder` adds to the runtime under it
    kernels/        each Triton kernel and the encoder on them against PyTorch, on a GPU
    gpu/            the encoder on an NVIDIA GPU: the performance model, and one command that proves it
    concurrency     threads that share one `Encoder`
    decoding        reading and decoding images: threads against processes, and which part takes the time
    scale/          time, cost and repeated work of many images on many GPUs
    results         figures as JSON, with the environment they were measured in

May import everything but `cli`; is imported by nothing but its tests.
"""
