"""Building TensorRT engines, and what was built.

What lives here
    api             the one module that knows TensorRT's versions and flavours apart
    options         what a build is asked for: profile, memory, compatibility
    build           an artifact's ONNX file -> a plan, cancellable, with TensorRT's own words collected
    cache           the timing cache: keyed, locked, atomic, set aside where it is damaged
    layers          the engine's layers, from its inspector or the build's log
    summary         what those layers say: precisions, fused attention, fallbacks, memory
    binding         what a plan is bound to, and whether it may be loaded here
    trtexec         the same build as a command line of NVIDIA's tool

Only `build`, `api` and what they import touch TensorRT, and only inside functions: this package imports without it.
May import `export`'s artifact, manifest and options; is imported by `export.engine`, `export.runtime` and `cli`.
"""
