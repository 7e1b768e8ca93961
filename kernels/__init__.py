"""Triton kernels for FastViTHD's blocks on NVIDIA GPUs, and the model that runs on them.

What lives here
    language        Triton where it is installed, and what stands in for it elsewhere
    dispatch        when a kernel runs and when PyTorch does: device, dtype, switches
    table           block sizes by kernel, architecture and shape: committed, and tuned by the user
    configs/        the committed ones, as JSON
    tiles           what several kernels share: matrix products, GELU
    attention       softmax(q k^T) v on packed qkv
    norm_linear     LayerNorm and the product after it
    linear          a product with bias, and what follows it: GELU, or scale and residual (linear_residual)
    mlp             fc1, GELU, fc2 and residual without the hidden tensor
    depthwise       depthwise convolutions, channels-last
    launches        which kernels the encoder launches, found without a GPU
    aot             kernels compiled for six architectures without one, and what the compilers say of them
    tensorrt_plugin  the attention kernel as a plugin that TensorRT compiles into an engine

Each kernel's file holds its formula, the kernel, the same in plain PyTorch, and a function that runs whichever fits.
May import `encoder`; may be imported by `calibration`, `export`, `benchmarks` and `cli`. Imports without Triton.
"""
