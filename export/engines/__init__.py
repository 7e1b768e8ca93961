"""Building TensorRT engines, and what was built.

What lives here
    api             the one module that knows TensorRT's versions and flavours apart
    engine_options  the options of a build: profile, memory, compatibility
    engine_section  an engine as the manifest records it
    build           an artifact's ONNX file -> a plan, cancellable, with TensorRT's own words collected
    timing_cache    the timing cache: keyed, locked, atomic, set aside where it is damaged
    layers          the engine's layers, from its inspector or the build's log
    summary         what those layers say: precisions, fused attention, fallbacks, memory
    binding         what a plan is bound to, and whether it may be loaded here
    trtexec_command
                    the same build as a command line of NVIDIA's tool

Only `build`, `api` and what they import touch TensorRT, and only inside functions: this package imports without it.
May import `export.tensor_names`; `export.manifest`, `export.engine_export`, `export.runtime` and `cli` import it.
"""
