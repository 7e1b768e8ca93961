"""The GPU path, predicted and measured.

What lives here
    proof           everything that needs an NVIDIA GPU, checked and measured in one command (`make gpu-proof`)
    phases/         its steps, each in a process of its own; the other modules are their parts
    model           predicted milliseconds of each part of the encoder, and of rivals
    predicted/      what the predictions are computed from
"""
