"""`patch`: the exported encoder in the place of a loaded FastVLM's vision tower, and the tower back in its place.

    vlm = transformers.FastVlmForConditionalGeneration.from_pretrained("…")
    with fvexport.patch(vlm, "fastvithd-1024"):
        vlm.generate(**inputs)

Everything around it stays the caller's own: processor, generation, streaming. Two kinds of model are known by how they
reach their tower: transformers' `FastVlmModel.get_image_features`, which takes `vision_tower(pixels).last_hidden_state`
as (B, C, h, w); and LLaVA's `encode_images` (apple/ml-fastvlm), which takes `get_vision_tower()(pixels)` as (B, N, C).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder.checkpoint import Checkpoint
from ..encoder.checkpoint.forms import detect
from ..encoder.checkpoint.load import tensors_sha256
from ..encoder.checkpoint.projector import canonical_names
from ..errors import ArtifactError, UnavailableError
from .artifact import Artifact
from .options import AUTO
from .runtime.vision_tower import ArtifactTower, check_same_weights


class Patch:
    """A patched model; a context manager, or `restore()` at any time.

    While it lasts, the model's own tower is not among its modules: restore before the model is saved or moved.

    Attributes:
        tower: what encodes now.
    """

    def __init__(self, tower: ArtifactTower, holder: nn.Module, modules: Mapping[str, Any]) -> None:
        self.tower = tower
        self._holder = holder
        self._before = {name: getattr(holder, name) for name in modules}
        self._now = dict(modules)
        for name, module in modules.items():
            setattr(holder, name, module)

    def restore(self) -> None:
        """Puts the model's own tower back; a second time it does nothing.

        Raises ArtifactError where something else stands there by now, such as a later patch: restore that first.
        """
        if any(getattr(self._holder, name) is not self._now[name] for name in self._before):
            raise ArtifactError("the model's tower was replaced once more since; restore the later patch first")
        for name, module in self._before.items():
            setattr(self._holder, name, module)
        self._before = {}

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def patch(
    model: Any, artifact: str | os.PathLike[str] | Artifact, *, backend: str = AUTO,
    threads: int | None = None, checkpoint: Checkpoint | str | None = None, force: bool = False,
) -> Patch:  # fmt: skip
    """Replaces the vision tower of a loaded FastVLM by an exported encoder.

    Args:
        model: transformers' `FastVlmForConditionalGeneration` or `FastVlmModel`, or a LLaVA-form model
            (`get_vision_tower()`, `encode_images`), with its weights loaded. Its own tower is kept, not run.
        artifact: a folder that `fvexport onnx` wrote, or an opened `Artifact`; one with `--projector` stands for the
            model's projector too.
        backend, threads, checkpoint: see `Encoder`.
        force: take an artifact that was made from other weights than the model's.

    Raises:
        ArtifactError: not a usable artifact, or made from other weights.
        UnavailableError: a model of another kind, or the backend cannot run here.
    """
    anatomy = _anatomy(model)
    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
    if not force:
        _check(opened, anatomy)
    tower = ArtifactTower(opened, None, backend=backend, threads=threads, checkpoint=checkpoint)
    placed: Any = anatomy.stand_in(tower, anatomy.tower, anatomy.holder)
    modules = {"vision_tower": [placed] if isinstance(anatomy.holder.vision_tower, list) else placed}
    if tower.projected:
        modules[anatomy.projector] = nn.Identity()
    return Patch(tower, anatomy.holder, modules)


class _Tower(nn.Module):
    """What a model calls instead of its tower; it answers for the tower's other attributes."""

    def __init__(self, tower: ArtifactTower, own: nn.Module, holder: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        # In tuples, since modules would become children: the tower's weights stay out of the model while it is patched.
        self._own = (own,)
        self._holder = (holder,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("_own", "_holder", "tower"):
                raise
            return getattr(self._own[0], name)


class _TransformersTower(_Tower):
    """As `TimmWrapperModel` answers."""

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """(B, 3, H, W) in [0, 1] -> an output whose `last_hidden_state` is (B, C, H / 64, W / 64)."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        like = next(self._holder[0].parameters())  # where the rest of the model is now
        stride = self.tower.artifact.manifest.architecture.stride
        tokens = self.tower.encode(pixel_values).to(like.device, like.dtype)
        h, w = (side // stride for side in pixel_values.shape[-2:])
        plane = tokens.transpose(1, 2).reshape(len(tokens), -1, h, w)
        return BaseModelOutputWithPooling(last_hidden_state=plane)


class _LlavaTower(_Tower):
    """As `MobileCLIPVisionTower` of apple/ml-fastvlm answers."""

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> (B, N, C); a list of (3, H, W) -> a list of (1, N, C)."""
        if isinstance(images, list):
            return [self._tokens(image[None]) for image in images]
        return self._tokens(images)

    def _tokens(self, images: Tensor) -> Tensor:
        return self.tower.encode(images).to(images.device, images.dtype)


@dataclass(frozen=True)
class _Anatomy:
    """Where a model has its tower: the module that holds it, its projector's name, and what can stand in for it."""

    holder: nn.Module
    projector: str
    form: str
    stand_in: type[_Tower]

    @property
    def tower(self) -> Any:
        """The model's own; LLaVA has it in a list under FSDP."""
        own = self.holder.vision_tower
        return own[0] if isinstance(own, list) else own


def _anatomy(model: Any) -> _Anatomy:
    inner = model.get_model() if callable(getattr(model, "get_model", None)) else getattr(model, "model", model)
    for holder in (inner, model):
        if getattr(holder, "vision_tower", None) is None:
            continue
        if hasattr(holder, "mm_projector"):
            return _Anatomy(holder, "mm_projector", "llava", _LlavaTower)
        if getattr(getattr(holder, "config", None), "model_type", None) == "fast_vlm":
            return _Anatomy(holder, "multi_modal_projector", "transformers", _TransformersTower)
    raise UnavailableError(
        f"a {type(model).__name__} has no vision tower that patch knows; give transformers' "
        "FastVlmForConditionalGeneration, or a LLaVA-form FastVLM with its weights loaded"
    )


def _check(artifact: Artifact, anatomy: _Anatomy) -> None:
    """Raises ArtifactError for an artifact of other weights than the model holds."""
    source = f"the given {type(anatomy.holder).__name__}"
    state = {f"vision_tower.{name}": tensor for name, tensor in anatomy.tower.state_dict().items()}
    naming = detect(state)
    if naming is None or naming.form.name != anatomy.form:
        raise ArtifactError(f"{source} has a vision tower that is no FastViTHD; patch replaces FastVLM's alone")
    held = {canonical: t for name, t in state.items() if (canonical := naming.canonical(name)) is not None}
    projector = getattr(anatomy.holder, anatomy.projector).state_dict()
    names = canonical_names(naming.form, projector.keys()) if projector else {}
    ends = tensors_sha256({names[part]: t for part, t in projector.items()}, torch.float32)
    check_same_weights(artifact, source, tensors_sha256(held, torch.float32), ends)
