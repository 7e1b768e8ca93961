"""`patch`: a loaded FastVLM's vision tower answers with the exported encoder, until it is restored.

    vlm = transformers.FastVlmForConditionalGeneration.from_pretrained("…")
    with fvexport.patch(vlm, "fastvithd-1024"):
        vlm.generate(**inputs)

The tower stays the module that it was, with its weights and its place in the model; its `forward` alone is another. So
`state_dict`, `save_pretrained`, `load_state_dict`, `to`, `train`, `requires_grad_` and the names of modules are as in
the model without a patch. Processor, generation and streaming stay the caller's own.

Two kinds of model are known by how they reach their tower: transformers' `FastVlmModel.get_image_features`, which takes
`vision_tower(pixels).last_hidden_state` as (B, C, h, w); and LLaVA's `encode_images` (apple/ml-fastvlm), which takes
`get_vision_tower()(pixels)` as (B, N, C).
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ArtifactError, ConfigError, UnavailableError
from ..encoder.checkpoint import Checkpoint
from ..encoder.checkpoint.forms import detect
from ..encoder.checkpoint.load import tensors_sha256
from ..encoder.checkpoint.projector import canonical_names
from .artifact import Artifact
from .export_options import AUTO
from .runtime.vision_tower import ArtifactTower, check_same_weights

_LOG = logging.getLogger("fvexport")
_BY_MODE = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
"""Modules that compute something else in training mode."""


class Patch:
    """A patched model; a context manager, or `restore()` at any time.

    Attributes:
        tower: what encodes now.
        notice: what a person has to know of the weights, if anything; it was logged as a warning.
    """

    def __init__(self, tower: ArtifactTower, stand_ins: list[_StandIn], notice: str | None = None) -> None:
        self.tower = tower
        self.notice = notice
        self._placed = stand_ins
        for stand_in in stand_ins:
            stand_in.own.forward = stand_in

    def restore(self) -> None:
        """Gives the tower its own `forward` back; a second time it does nothing.

        Raises ArtifactError if something else replaced it by now, such as a later patch: restore that first.
        """
        if any(stand_in.own.__dict__.get("forward") is not stand_in for stand_in in self._placed):
            raise ArtifactError("the model's tower was replaced once more since; restore the later patch first")
        for stand_in in self._placed:
            if stand_in.before is None:
                del stand_in.own.forward
            else:
                stand_in.own.forward = stand_in.before
        self._placed = []

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def patch(
    model: Any, artifact: str | os.PathLike[str] | Artifact, *, backend: str = AUTO,
    threads: int | None = None, checkpoint: Checkpoint | str | None = None, force: bool = False,
) -> Patch:  # fmt: skip
    """Lets a loaded FastVLM encode images with an exported encoder.

    Pixels go in as the model takes them: normalized floats, as its own processor makes them. A uint8 artifact gets the
    nearest levels of them.

    While it lasts, the model's own tower computes what the artifact cannot, and a warning is logged: hidden states
    (`output_hidden_states`), pixels that require a gradient, training mode. An artifact with `--projector` refuses
    these. Outside training mode, a backward pass to weights that the artifact stands for raises ConfigError, unless
    they are frozen. A copy of the model (`deepcopy`, `pickle`) is not patched.

    Args:
        model: transformers' `FastVlmForConditionalGeneration` or `FastVlmModel`, or a LLaVA-form model
            (`get_vision_tower()`, `encode_images`), with its weights loaded. Its own tower stays in it, but does not
            run. Weights that were rounded to bfloat16 or float16 are taken as the artifact's own, with a notice.
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
    notice = None if force else _check(opened, anatomy)
    tower = ArtifactTower(opened, None, backend=backend, threads=threads, checkpoint=checkpoint)
    main = anatomy.stand_in(anatomy.tower, tower)
    if not force:
        main.check_again = lambda: _check(opened, anatomy)
    stand_ins: list[_StandIn] = [main]
    projector = getattr(anatomy.holder, anatomy.projector)
    if tower.projected:
        stand_ins.append(_Projected(projector, tower))
        main.watch(projector)
    elif isinstance(projector.__dict__.get("forward"), _Projected):  # of an earlier patch, which lasts
        stand_ins.append(_OwnProjector(projector, tower))
    if notice is not None:
        _LOG.warning("%s", notice)
    return Patch(tower, stand_ins, notice)


class _StandIn:
    """What a module has as its `forward` while it is patched.

    A copy of the module, by `deepcopy` or `pickle`, has its own `forward`: an open runtime cannot be copied with it.

    Attributes:
        own: the module.
        before: what the instance had as `forward`, such as accelerate's; None for that of its class.
        check_again: compares the artifact's weights with the model's once more; None if they may differ.
    """

    def __init__(self, own: nn.Module, tower: ArtifactTower) -> None:
        self.own: Any = own
        self.tower = tower
        before: Callable[..., Any] | None = own.__dict__.get("forward")
        self.before = before
        self.check_again: Callable[[], object] | None = None
        self._told: set[str] = set()
        self._watched: list[nn.Module] = [own]
        self._versions = self._counted()

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own answer, whatever earlier patches there are."""
        before: Any = self.before
        if isinstance(before, _StandIn):
            return before.original(*args, **kwargs)
        return before(*args, **kwargs) if before else type(self.own).forward(self.own, *args, **kwargs)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> tokens (B, N, C), by the artifact; no gradient passes to its weights.

        Raises ArtifactError if the model's weights were changed since: by `load_state_dict`, an optimizer, in place.
        """
        if self.check_again is not None and (versions := self._counted()) != self._versions:
            self.check_again()  # a move to another device or type changes nothing else
            self._versions = versions
        tokens = self.tower.encode(pixels.detach())
        trained = (p for module in self._watched for p in module.parameters() if p.requires_grad)
        if (one := next(trained, None)) is None:
            return tokens
        answer: Tensor = _NoBackward.apply(tokens, one)  # type: ignore[no-untyped-call]
        return answer

    def watch(self, module: nn.Module) -> None:
        """Counts another module's weights as the artifact's too."""
        self._watched.append(module)
        self._versions = self._counted()

    def _counted(self) -> list[tuple[int, int]]:
        """PyTorch's count of changes of each tensor, and where it is."""
        held = [t for module in self._watched for t in (*module.parameters(), *module.buffers())]
        return [(0 if t.is_inference() else t._version, 0 if t.is_meta else t.data_ptr()) for t in held]

    def leaves(self, pixels: Tensor) -> str | None:
        """What keeps the artifact from answering for the tower: gradients and training; None if nothing does."""
        if torch.is_grad_enabled() and pixels.requires_grad:
            return "pixels that require a gradient"
        trains = self.own.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.own.parameters())
        if trains or any(module.training for module in self.own.modules() if isinstance(module, _BY_MODE)):
            return "a vision tower in training mode (call model.eval())"
        return None

    def by_itself(self, reason: str, *args: Any, **kwargs: Any) -> Any:
        """The tower's own answer, since the artifact cannot give it; logged once.

        Raises ConfigError if the artifact ends with the projector, which expects its output.
        """
        if self.tower.projected:
            raise ConfigError(f"an artifact that ends with the projector cannot serve {reason}; restore() the patch")
        if reason not in self._told:
            self._told.add(reason)
            _LOG.warning("the model's own vision tower runs for %s, which the artifact cannot serve", reason)
        return self.original(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.before is not None:
            return copy.deepcopy(self.before, memo)
        return MethodType(type(self.own).forward, copy.deepcopy(self.own, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        # While the module is unpickled, the instance has no `forward` yet: this finds that of its class.
        return getattr, (self.own, "forward")


class _NoBackward(torch.autograd.Function):
    """The tokens, as a result of weights that require a gradient, which the artifact does not have."""

    @staticmethod
    def forward(_ctx: Any, tokens: Tensor, _weight: Tensor) -> Tensor:
        return tokens.view_as(tokens)

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> Any:
        raise ConfigError(
            "an artifact in the vision tower's place gives its weights no gradient; freeze them with "
            "requires_grad_(False), call model.train(), or restore() the patch"
        )


class _TransformersTower(_StandIn):
    """As `TimmWrapperModel` answers."""

    def __call__(
        self, pixel_values: Tensor, output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None, return_dict: bool | None = None,
        do_pooling: bool | None = None, use_cache: bool | None = None, **others: Any,
    ) -> Any:  # fmt: skip
        """Normalized pixels (B, 3, H, W) -> an output whose `last_hidden_state` is (B, C, H / 64, W / 64)."""
        config = getattr(self.own, "config", None)

        def stated(value: Any, name: str, otherwise: bool) -> Any:
            return getattr(config, name, otherwise) if value is None else value

        reason = self.leaves(pixel_values)
        if stated(output_hidden_states, "output_hidden_states", False):
            reason = "hidden states"
        elif stated(output_attentions, "output_attentions", False) or others:
            reason = ", ".join(others) or "attentions"
        if reason is not None:
            return self.by_itself(
                reason, pixel_values, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
                return_dict=return_dict, do_pooling=do_pooling, **others,
            )  # fmt: skip
        from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModelOutput

        like = next(p for p in self.own.parameters() if p.is_floating_point())
        device = pixel_values.device if like.is_meta else like.device  # offloaded weights have no place
        tokens = self.encode(pixel_values).to(device, like.dtype)
        stride = self.tower.artifact.manifest.architecture.stride
        h, w = (side // stride for side in pixel_values.shape[-2:])
        plane = tokens.transpose(1, 2).reshape(len(tokens), -1, h, w)
        pool = getattr(getattr(self.own, "timm_model", None), "forward_head", None)
        pools = pool is not None and not self.tower.projected and stated(do_pooling, "do_pooling", False)
        pooled = pool(plane) if pool is not None and pools else None
        if stated(return_dict, "return_dict", True):
            return TimmWrapperModelOutput(last_hidden_state=plane, pooler_output=pooled)
        return (plane,) if pooled is None else (plane, pooled)


class _LlavaTower(_StandIn):
    """As `MobileCLIPVisionTower` of apple/ml-fastvlm answers."""

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Normalized pixels (B, 3, H, W) -> (B, N, C); a list of (3, H, W) -> a list of (1, N, C)."""
        several = images if isinstance(images, list) else [images]
        for image in several:
            if (reason := self.leaves(image)) is not None:
                return self.by_itself(reason, images)
        if isinstance(images, list):
            return [self._tokens(image[None]) for image in images]
        return self._tokens(images)

    def _tokens(self, images: Tensor) -> Tensor:
        return self.encode(images).to(images.device, images.dtype)


class _Projected(_StandIn):
    """In a projector's place after an artifact that ends with it: its input is its output already."""

    def __call__(self, features: Tensor) -> Tensor:
        """(B, N, C) -> the same."""
        return features


class _OwnProjector(_StandIn):
    """The projector itself, where an earlier patch stands in its place that ends with it."""

    def __call__(self, features: Tensor) -> Any:
        """(B, N, C) -> (B, N, D)."""
        return self.original(features)


@dataclass(frozen=True)
class _Anatomy:
    """Where a model has its tower: the module that holds it, its projector's name, and what can stand in for it."""

    holder: nn.Module
    projector: str
    form: str
    stand_in: type[_TransformersTower | _LlavaTower]

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


def _check(artifact: Artifact, anatomy: _Anatomy) -> str | None:
    """What a person has to know of the model's weights; raises ArtifactError if they are not the artifact's."""
    source = f"the given {type(anatomy.holder).__name__}"
    state = {f"vision_tower.{name}": tensor for name, tensor in anatomy.tower.state_dict().items()}
    naming = detect(state)
    if naming is None or naming.form.name != anatomy.form:
        raise ArtifactError(f"{source} has a vision tower that is no FastViTHD; patch replaces FastVLM's alone")
    held = {canonical: t for name, t in state.items() if (canonical := naming.canonical(name)) is not None}
    if any(tensor.is_meta for tensor in held.values()):
        raise ArtifactError(f"{source} has weights that were offloaded, so they cannot be compared; pass force=True")
    projector = getattr(anatomy.holder, anatomy.projector).state_dict()
    names = canonical_names(naming.form, projector.keys()) if projector else {}
    ends = tensors_sha256({names[part]: t for part, t in projector.items()}, torch.float32)
    dtype = next((t.dtype for t in held.values() if t.is_floating_point()), torch.float32)
    return check_same_weights(artifact, source, tensors_sha256(held, torch.float32), ends, dtype=dtype)
