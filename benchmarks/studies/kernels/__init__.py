"""Each Triton kernel against PyTorch's best, and the whole encoder against eager and torch.compile, on an NVIDIA GPU.

What lives here
    command     `python -m fvexport.benchmarks.studies.kernels`: what is measured, and the lines that it prints
    cases       the encoder's operators at their real sizes, with every candidate and float64
    rows        one operator's candidates, compared and timed
    encoder     the whole encoder, compared and timed
    compiled    the encoder through `torch.compile`, in a process of its own
    row_file    rows as JSON lines, each in the file as soon as it is measured
"""
