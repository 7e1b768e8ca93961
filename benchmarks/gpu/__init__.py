"""The GPU path, predicted and measured.

What lives here
    model           predicted time per part of the encoder, before and after, and for its rivals
    predicted/      what the predictions are computed from
"""
