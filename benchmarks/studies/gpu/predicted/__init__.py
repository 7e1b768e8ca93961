"""The performance model: predicted time of every kernel of the encoder, before anything is measured.

What lives here
    device      what a GPU can do: FLOPs, bytes, clock
    codes       instructions, registers and shared memory of each compiled kernel, counted in its SASS
    count_codes the command that counts them, which needs Triton
    cost        time of one launch from its instructions, FLOPs and bytes
    operators   our Triton kernels: how a call is cut into programs, and what each program does
    library     cuBLAS, cuDNN, SDPA and PyTorch's elementwise kernels
    parts       the encoder as a list of steps, each in a named part of the model
    scenario    who computes each step: the release before, this version, single changes, rivals
    prediction  milliseconds of one call, by part
    markdown    the tables of docs/performance-model.md

Nothing here is measured on a GPU, except the four ceilings of an H100 in `device`.
"""
