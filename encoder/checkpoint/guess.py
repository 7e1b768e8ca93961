"""What a file that is no FastViTHD seems to be, from its tensors' names; for error messages only."""

from __future__ import annotations

import re
from collections.abc import Collection

# The first rule whose every pattern is found in some name speaks.
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a LLaVA whose vision tower is a CLIP ViT", (r"vision_tower\.vision_tower\.vision_model\.",)),
    ("a CLIP or SigLIP as transformers saves it", (r"(^|\.)text_model\.", r"(^|\.)vision_model\.")),
    ("a CLIP whose image tower is a ViT", (r"(^|\.)visual\.(transformer\.resblocks|trunk\.blocks)\.",)),
    ("a CLIP whose image tower is a ViT", (r"(^|\.)image_encoder\..*(attn\.qkv|transformer)",)),
    ("a FastViTHD whose shapes are all damaged", (r"(^|\.)(network\.10\.\d+|stages\.4\.blocks\.\d+)\.token_mixer\.",)),
    (
        "a four-stage FastViT (MobileCLIP S0 to S2, FastViT T8 to MA36); FastViTHD has five stages",
        (r"(network\.\d+\.\d+|stages\.\d+\.blocks\.\d+)\.token_mixer\.",),
    ),
    (
        "a vision-language model with another image encoder",
        (r"(^|\.)layers\.\d+\.self_attn\.", r"(^|\.)(visual|vision_tower|vision_model|vision_encoder)\."),
    ),
    ("a language model", (r"(^|\.)layers\.\d+\.self_attn\.",)),
    ("a language model", (r"(^|\.)h\.\d+\.attn\.",)),
    ("a ViT", (r"(^|\.)(blocks|layers?|encoder_layer_?)\.?\d+\.(attn|attention|self_attention)\.",)),
    ("a ConvNeXt", (r"(^|\.)(stages\.\d+\.blocks\.\d+\.conv_dw|stages\.\d+\.\d+\.dwconv)\.",)),
    ("a ResNet", (r"(^|\.)layer\d\.\d+\.conv\d\.",)),
    ("the connector of a FastVLM or LLaVA alone, without its encoder", (r"(^|\.)(mm|multi_modal)_projector\.",)),
)


def seems_to_be(names: Collection[str]) -> str:
    """A noun phrase for the model that these names belong to."""
    for what, patterns in _RULES:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return what
    return "a model unknown to this program"
