"""FastVLM whole: image and question in, answer out. The encoder's tokens in front of Qwen2.

    model           `FastVLM`: encode images, build the prompt, answer
    load            `load_fastvlm`: both public checkpoint forms, one tensor at a time
    records         the JSON files as structs: types and bounds of what is used
    language        Qwen2 through transformers: its config and tensors in a checkpoint
    tokenizer       the tokenizer beside the weights, and what ends an answer
    tokenizer_file  `tokenizer.json` as structs: what Qwen2's have and little else
    prompt          a conversation -> ChatML -> token ids with marks for images
    splice          token ids and visual tokens -> embeddings
    tiles           high resolution: AnyRes' grid of tiles and overview
    vision          what stands in for the vision tower: the eager encoder, or an artifact
    generate        prefill, greedy or sampled decoding, streaming, and where the time goes

Needs transformers (`pip install "fvexport[vlm]"`), imported on first use; no timm, no torchvision, no remote code.
May import the rest of `encoder`; the glue that makes an artifact a vision tower stands in `export.runtime`.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
