"""FastViTHD in PyTorch: the model, its exact fusion, its checkpoints, its connector, its images.

What lives here
    weight_options  which weights a command or function works on
    config          the architecture as a dataclass, and the named variants
    layers          the fused model layer by layer, with names and sizes
    fastvithd       the model, in its train, released and fused forms
    reparameterize  train or released form -> fused form, exactly
    float32         islands of float32 in a half-precision model
    exact           float32 in full, with TF32 off
    convolution_trials
                    lets cuDNN choose algorithms by timing them
    connector       visual tokens -> the LLM's embedding width
    seeded          deterministic weights for work without a checkpoint
    checkpoint/     the public checkpoint forms: find, check, load
    image/          files, arrays, tensors -> RGB images; folders searched for images
    preprocess      images -> pixel_values, as the released models do it
    preprocess_config, processor_dict
                    how a checkpoint prepares images, as data; and in transformers' terms
    resize          part of a resized canvas, in memory proportional to image and result
    qwen2           the language model through transformers, which is an extra
    fastvlm/        the whole model: image and question in, answer out

May be imported by every other folder except `core`, the only one that it imports. Names load on first use, so that
importing this package costs nothing.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
