"""Triton kernels for FastViTHD's blocks on NVIDIA GPUs, and the model that runs on them.

What lives here
    language        Triton where it is installed, and what stands in for it elsewhere
    dispatch        when a kernel runs and when PyTorch does: device, dtype, switches
    table           block sizes by kernel, architecture and shape: committed, and tuned by the user
    configs/        the committed ones, as JSON
    tiles           what several kernels share: matrix products, GELU
    attention       softmax(q k^T) v on packed qkv
    norm_linear     LayerNorm and the product after it
    linear_residual a product with bias, and scale and residual after it
    linear_gelu     a product with bias, and GELU after it
    products        which of the next four computes them
    linear          a product and what follows it in one pass, on every architecture
    linear_tma      the same by the copy engine of Hopper and Blackwell
    split_k         the same for few rows: the summed axis in parts
    cublas          cuBLAS, and what follows the product in a pass of its own
    mlp             fc1, GELU, fc2 and residual without the hidden tensor
    depthwise       depthwise convolutions, channels-last: the operator, and the kernel for any multiplier
    depthwise_rows  those with one output per input channel, eight rows per program
    depthwise_strips the 7x7 with one output per input channel, four positions side by side per thread
    depthwise_pairs those with two, which load each value once for both
    fp8             FP8 numbers: rounding, what follows a product, what a quantized layer holds
    linear_fp8      a product of FP8 numbers and what follows it
    scaled_mm       cuBLAS's product of FP8 numbers, and what follows in passes of its own
    norm_fp8        LayerNorm, rounded to FP8
    quantize_fp8    rounding to FP8, and GELU before it
    fp8_layers      a quantized model's layers on these kernels
    policy          which kernel computes which part of the model, and why
    accelerate      the fused model on the kernels
    cuda_graph      a model's launches recorded once and replayed
    timing          device time of calls: events that the host runs ahead of, CUDA graphs of many copies
    ceilings        what a GPU reaches in a plain copy and a plain product
    warm            Triton's cache filled by processes that open no GPU
    share           which calls a model makes, and their predicted time
    tune            block sizes searched on a GPU, for `fvexport tune`
    launches        which kernels the encoder launches, found without a GPU
    aot             kernels compiled for six architectures without one, and what the compilers say of them
    tensorrt_plugin  the attention kernel as a plugin that TensorRT compiles into an engine

Each kernel's file holds its formula, the kernel, the same in plain PyTorch, and a function that runs whichever fits.
May import `encoder`; may be imported by `export`, `benchmarks` and `cli`. Imports without Triton.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
