"""The five public forms of a FastViTHD checkpoint, and their names for the same tensors.

Canonical names are timm's (`fastvit_mci3`), which are this package's own. A form is a prefix
and one of two vocabularies: timm's, or that of Apple's code. Sources: apple/ml-mobileclip
`mobileclip/modules/image/mci.py`, apple/ml-fastvlm, timm `fastvit.checkpoint_filter_fn`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ..fastvithd import Form as ModelForm

# Apple's `network` is one flat list: stages, patch embeddings and position encodings in turn.
NETWORK = {
    "0": "stages.0.blocks", "1": "stages.1.downsample", "2": "stages.1.blocks", "3": "stages.2.downsample",
    "4": "stages.2.blocks", "5": "stages.3.downsample", "6": "stages.3.pos_emb", "7": "stages.3.blocks",
    "8": "stages.4.downsample", "9": "stages.4.pos_emb", "10": "stages.4.blocks",
}  # fmt: skip

# (Apple's, timm's), as patterns over whole dotted segments; undone in the same way.
_SEGMENTS = (
    ("patch_embed", "stem"),
    ("conv_exp", "final_conv"),
    ("rbr_conv", "conv_kxk"),
    ("rbr_scale", "conv_scale"),
    ("rbr_skip", "identity"),
    ("lkb_origin", "large_conv"),
    ("convffn", "mlp"),
    ("pe", "pos_enc"),
    ("se.reduce", "se.fc1"),
    ("se.expand", "se.fc2"),
    ("layer_scale", "layer_scale.gamma"),
    ("layer_scale_1", "layer_scale_1.gamma"),
    ("layer_scale_2", "layer_scale_2.gamma"),
)
_TO_TIMM = dict(_SEGMENTS)
_TO_APPLE = {timm: apple for apple, timm in _SEGMENTS}
_LARGE_KERNEL = ".downsample.proj.0."  # where Apple says `lkb_reparam` for timm's `reparam_conv`

APPLE_ROOTS = ("patch_embed.", "network.", "conv_exp.")
TIMM_ROOTS = ("stem.", "stages.", "final_conv.")


def _translate(name: str, table: dict[str, str]) -> str:
    pattern = "|".join(re.escape(key) for key in sorted(table, key=len, reverse=True))
    return re.sub(rf"(?<![^.])(?:{pattern})(?![^.])", lambda m: table[m[0]], name)


def apple_to_timm(name: str) -> str:
    """`network.0.0.convffn.fc1.weight` -> `stages.0.blocks.0.mlp.fc1.weight`; unknown parts stay."""
    root, _, rest = name.partition(".")
    index, _, tail = rest.partition(".")
    if root == "network" and index in NETWORK:
        name = f"{NETWORK[index]}.{tail}"
    name = _translate(name, _TO_TIMM)
    return name.replace(".lkb_reparam.", ".reparam_conv.") if _LARGE_KERNEL in name else name


def timm_to_apple(name: str) -> str:
    """The inverse of `apple_to_timm` on every name that FastViTHD has."""
    if _LARGE_KERNEL in name:
        name = name.replace(".reparam_conv.", ".lkb_reparam.")
    name = _translate(name, _TO_APPLE)
    for index, part in NETWORK.items():
        if name.startswith(f"{part}."):
            return f"network.{index}{name[len(part) :]}"
    return name


@dataclass(frozen=True)
class PublicForm:
    """One published layout.

    Attributes:
        name: as `CheckpointInfo.form` says it.
        title: as error messages say it.
        prefixes: what its tensors' names begin with; older saves dropped the leading `model.`.
        apple: Apple's names after the prefix, else timm's.
        connector: prefixes of the connector's tensors; empty where the form has none.
    """

    name: str
    title: str
    prefixes: tuple[str, ...]
    apple: bool
    connector: tuple[str, ...]


FORMS = (
    PublicForm(
        "llava", "LLaVA form (FastVLM as Apple publishes it)",
        ("model.vision_tower.vision_tower.model.", "vision_tower.vision_tower.model."), True,
        ("model.mm_projector.", "mm_projector."),
    ),
    PublicForm(
        "transformers", "transformers form (`fast_vlm`)",
        ("model.vision_tower.timm_model.", "vision_tower.timm_model."), False,
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    PublicForm("mobileclip", "MobileCLIP form", ("image_encoder.model.", ""), True, ()),
    PublicForm("open_clip", "open_clip form", ("visual.trunk.",), False, ()),
    PublicForm("timm", "timm form (`fastvit_mci3`)", ("",), False, ()),
)  # fmt: skip


@dataclass(frozen=True)
class Naming:
    """How one file names the encoder's tensors."""

    form: PublicForm
    prefix: str

    def canonical(self, name: str) -> str | None:
        """The canonical name of a file's tensor, or None where it is not the encoder's to load.

        None stands for other parts of the file and for what is ignored on purpose: the CLIP head
        and BatchNorm's counters. A name within the prefix that no FastViTHD has comes back
        as it would be read, so that it shows up as surplus.
        """
        if not name.startswith(self.prefix):
            return None
        own = name[len(self.prefix) :]
        if own.endswith("num_batches_tracked") or re.match(r"head(_dist)?\.", own):
            return None
        canonical = apple_to_timm(own) if self.form.apple else own
        # What does not come back as it was is no name of this vocabulary: no two may meet in one.
        return canonical if self.file_name(canonical) == name else f"?{name}"

    def file_name(self, canonical: str) -> str:
        """The file's own name for a canonical one, for messages about what is missing."""
        return self.prefix + (timm_to_apple(canonical) if self.form.apple else canonical)


def detect(names: Collection[str]) -> Naming | None:
    """The naming that most of the tensors' names speak for, or None where none does."""
    best, most = None, 0
    for form in FORMS:
        for prefix in form.prefixes:
            roots = tuple(prefix + root for root in (APPLE_ROOTS if form.apple else TIMM_ROOTS))
            count = sum(name.startswith(roots) for name in names)
            if count > most:
                best, most = Naming(form, prefix), count
    return best


def model_form(canonical_names: Collection[str]) -> ModelForm:
    """`train` or `released`, by what most tensors speak for; the prefix says nothing about it."""
    train = re.compile(r"\.(conv_kxk|conv_scale|identity|large_conv|small_conv|pos_enc)\.")
    trained = sum(train.search(name) is not None for name in canonical_names)
    merged = sum(".reparam_conv." in name for name in canonical_names)
    return "released" if merged > trained else "train"
