"""An artifact in the place of a loaded FastVLM's vision tower, in transformers' and in LLaVA's kind of model."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fvexport
from fvexport.core.errors import ArtifactError, ConfigError, FvexportError, UnavailableError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.forms import timm_to_apple
from fvexport.encoder.config import VARIANTS
from fvexport.encoder.fastvithd import FastViTHD
from fvexport.export.artifact import Artifact
from fvexport.export.export_options import ExportOptions

modeling_outputs = pytest.importorskip("transformers.modeling_outputs")
modeling_fast_vlm = pytest.importorskip("transformers.models.fast_vlm.modeling_fast_vlm")

Export = Callable[..., Artifact]
Golden = Callable[[str], dict[str, Any]]


class Timm(nn.Module):
    """Where transformers has `TimmWrapperModel`, which needs timm: the same names, the same answer."""

    def __init__(self) -> None:
        super().__init__()
        self.timm_model = FastViTHD(VARIANTS["tiny"], form="released")
        self.calls = 0

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        self.calls += 1
        h, w = (side // 64 for side in pixel_values.shape[-2:])
        tokens = self.timm_model(pixel_values)
        return modeling_outputs.BaseModelOutputWithPooling(
            last_hidden_state=tokens.transpose(1, 2).unflatten(2, (h, w))
        )


class Apple(nn.Module):
    """FastViTHD under Apple's names: `state_dict()` speaks as `mobileclip.MCi` does."""

    def __init__(self, encoder: FastViTHD) -> None:
        super().__init__()
        self.encoder = encoder

    def state_dict(self, *_: Any, prefix: str = "", **__: Any) -> dict[str, Tensor]:
        own = self.encoder.state_dict()
        return {f"{prefix}model.{timm_to_apple(name)}": tensor for name, tensor in own.items()}


class MobileClipTower(nn.Module):
    """Where apple/ml-fastvlm has `MobileCLIPVisionTower`: its call, and attributes that LLaVA's code asks it for."""

    def __init__(self, encoder: FastViTHD) -> None:
        super().__init__()
        self.vision_tower = Apple(encoder)
        self.calls = 0
        self.hidden_size, self.num_patches_per_side, self.is_loaded = 256, 4, True

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        return self.vision_tower.state_dict(prefix="vision_tower.")

    def forward(self, images: Any) -> Any:
        self.calls += 1
        if isinstance(images, list):
            return [self.vision_tower.encoder(image[None]).to(image.dtype) for image in images]
        return self.vision_tower.encoder(images).to(images.dtype)


class Llava(nn.Module):
    """How LLaVA's code goes from pixels to the language model: `get_model()`, `get_vision_tower()`, `encode_images`."""

    def __init__(self, checkpoint: Any, *, in_list: bool = False) -> None:
        super().__init__()
        tower = MobileClipTower(checkpoint.encoder)
        self.model = nn.Module()
        self.model.vision_tower = [tower] if in_list else tower
        self.model.mm_projector = nn.Sequential(*checkpoint.connector)

    def get_model(self) -> nn.Module:
        return self.model

    def get_vision_tower(self) -> Any:
        tower = self.model.vision_tower
        return tower[0] if isinstance(tower, list) else tower

    def encode_images(self, images: Any) -> Any:
        return self.model.mm_projector(self.get_vision_tower()(images))


@pytest.fixture
def transformers_model(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' own model and loading, on golden weights."""
    make = modeling_fast_vlm.AutoModel.from_config

    def from_config(config: Any, **options: Any) -> Any:
        return Timm() if config.model_type == "timm_wrapper" else make(config, **options)

    monkeypatch.setattr(modeling_fast_vlm.AutoModel, "from_config", from_config)
    model = modeling_fast_vlm.FastVlmForConditionalGeneration.from_pretrained(golden_dir / "transformers_tiny")
    return model.eval()


@pytest.fixture
def inputs(load_golden: Golden) -> dict[str, Tensor]:
    golden = load_golden("transformers_tiny")
    ids = torch.from_numpy(golden["input_ids"])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(golden["pixels_256x256"]),
    }


@pytest.fixture
def llava(golden_dir: Path) -> Llava:
    return Llava(load_checkpoint(golden_dir / "llava_tiny"))


def at_256(exported: Export, form: str = "transformers_tiny", *, projector: bool = False) -> Artifact:
    """Few are exported: of the LLaVA form only with its projector, which is the other form's "other weights" too."""
    return exported(form, height=256, width=256, projector=projector or form == "llava_tiny")


@pytest.mark.parametrize("projector", [False, True])
def test_transformers_answers_as_before(
    transformers_model: Any, inputs: dict[str, Tensor], load_golden: Golden, exported: Export, projector: bool
) -> None:
    golden = load_golden("transformers_tiny")
    model, tower = transformers_model, transformers_model.model.vision_tower
    parts = dict(model.named_modules())
    with torch.inference_mode():
        before = model(**inputs).logits
        calls = tower.calls
        with fvexport.patch(model, at_256(exported, projector=projector).path) as patched:
            assert patched.tower.projected == projector
            during = model(**inputs).logits
            made = model.generate(**inputs, max_new_tokens=16, do_sample=False)
            features = model.get_image_features(inputs["pixel_values"]).pooler_output
        assert tower.calls == calls  # it stood aside
        after = model(**inputs).logits
    assert np.abs(before.numpy() - golden["prefill_logits"]).max() < 1e-4
    assert np.abs(during.numpy() - golden["prefill_logits"]).max() < 1e-4
    assert made.tolist() == golden["greedy_ids"].tolist()
    assert np.abs(features.numpy() - golden["projected_256x256"]).max() < 1e-4
    assert torch.equal(before, after)
    assert dict(model.named_modules()) == parts


@pytest.mark.parametrize("in_list", [False, True], ids=["module", "list"])
def test_llava(golden_dir: Path, load_golden: Golden, exported: Export, in_list: bool) -> None:
    golden = load_golden("llava_tiny")
    model = Llava(load_checkpoint(golden_dir / "llava_tiny"), in_list=in_list)
    own, place = model.get_vision_tower(), model.model.vision_tower
    pixels = torch.from_numpy(golden["pixels_256x256"])
    patched = fvexport.patch(model, at_256(exported, "llava_tiny"))
    with torch.inference_mode():
        assert np.abs(model.encode_images(pixels).numpy() - golden["projected_256x256"]).max() < 1e-4
        halves = model.get_vision_tower()([pixels[0].half()] * 2)
    assert [half.dtype for half in halves] == [torch.float16] * 2 and halves[0].shape[:2] == (1, 16)
    assert model.get_vision_tower().num_patches_per_side == 4  # what it does not know, the model's own tower tells
    assert not hasattr(model.get_vision_tower(), "nothing_of_this_name")
    assert own.calls == 0
    patched.restore()
    patched.restore()
    assert model.model.vision_tower is place and model.get_vision_tower() is own
    with torch.inference_mode():
        assert np.abs(model.encode_images(pixels).numpy() - golden["projected_256x256"]).max() < 1e-4


def test_a_model_in_half_precision(transformers_model: Any, inputs: dict[str, Tensor], exported: Export) -> None:
    model = transformers_model.to(torch.bfloat16)
    with fvexport.patch(model, at_256(exported)) as patched, torch.inference_mode():
        logits = model(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}).logits
    assert logits.dtype == torch.bfloat16 and bool(torch.isfinite(logits).all())
    assert "holds its weights rounded to bfloat16" in str(patched.notice)
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).view(-1)[0] += 1
    with pytest.raises(ArtifactError, match="other weights"):
        fvexport.patch(model, at_256(exported))


def test_half_precision_and_an_artifact_of_an_earlier_version(
    transformers_model: Any, exported: Export, tmp_path: Path
) -> None:
    """Its manifest has no hashes of rounded weights: the line says that rounding may be all that differs."""
    newer = Artifact.open(at_256(exported).path)
    older = Artifact(
        newer.path, newer.manifest.replace(checkpoint=msgspec.structs.replace(newer.manifest.checkpoint, rounded={}))
    )
    model = transformers_model.half()
    with pytest.raises(ArtifactError, match="load the model in float32 if only the rounding to float16 differs"):
        fvexport.patch(model, older)


def test_other_weights_are_refused(transformers_model: Any, inputs: dict[str, Tensor], exported: Export) -> None:
    model = transformers_model
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    with pytest.raises(ArtifactError, match=r"made from other weights .* than those of the given FastVlmModel"):
        fvexport.patch(model, at_256(exported, "llava_tiny"))
    with torch.no_grad():
        projector.linear_2.bias += 1
    with pytest.raises(ArtifactError, match="ends with another connector"):
        fvexport.patch(model, at_256(exported, projector=True))
    fvexport.patch(model, at_256(exported)).restore()  # without it, the model's own is used
    assert model.model.vision_tower is tower and model.model.multi_modal_projector is projector
    with fvexport.patch(model, at_256(exported, "llava_tiny"), force=True), torch.inference_mode():
        model(**inputs)
        assert tower.calls == 0


def test_pixels_of_another_size(transformers_model: Any, inputs: dict[str, Tensor], exported: Export) -> None:
    small = {**inputs, "pixel_values": inputs["pixel_values"][..., :128, :128]}
    with fvexport.patch(transformers_model, at_256(exported)), pytest.raises(ConfigError, match="takes 256x256 alone"):
        transformers_model(**small)


def test_models_of_other_kinds_are_refused(exported: Export, llava: Llava) -> None:
    clip = SimpleNamespace(vision_tower=nn.Linear(1, 1), config=SimpleNamespace(model_type="llava"))
    for model in (nn.Linear(2, 2), clip, object()):
        with pytest.raises(UnavailableError, match="no vision tower that patch knows"):
            fvexport.patch(model, at_256(exported))
    llava.model.vision_tower = nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match="no FastViTHD"):
        fvexport.patch(llava, at_256(exported, "llava_tiny"))


def test_patches_come_off_in_turn(llava: Llava, exported: Export) -> None:
    own = llava.get_vision_tower()
    first = fvexport.patch(llava, at_256(exported, "llava_tiny"))
    second = fvexport.patch(llava, at_256(exported, "llava_tiny"), force=True)
    with pytest.raises(ArtifactError, match="restore the later patch first"):
        first.restore()
    second.restore()
    first.restore()
    assert llava.get_vision_tower() is own


@torch.no_grad()
def test_patches_of_both_kinds_over_each_other(
    transformers_model: Any, inputs: dict[str, Tensor], exported: Export
) -> None:
    """An artifact with the projector and one without: the last answers, and the projector runs for the latter alone."""
    model, pixels = transformers_model, inputs["pixel_values"]
    wanted, calls = features(model, pixels), tower_of(model).calls
    for kinds in ((True, False), (False, True), (True, False, True), (True, False, False)):
        with ExitStack() as stack:
            for projector in kinds:
                stack.enter_context(fvexport.patch(model, at_256(exported, projector=projector)))
                assert torch.allclose(features(model, pixels), wanted, rtol=1e-4, atol=1e-5)
            assert torch.allclose(features(copy.deepcopy(model), pixels), wanted, rtol=1e-4, atol=1e-5)
        assert tower_of(model).calls == calls
        assert torch.allclose(features(model, pixels), wanted, rtol=1e-4, atol=1e-5)
        calls = tower_of(model).calls
    with fvexport.patch(model, at_256(exported, projector=True)), fvexport.patch(model, at_256(exported)):
        model.get_image_features(pixels, output_hidden_states=True)
        assert tower_of(model).calls == calls + 1


@pytest.mark.parametrize("projector", [False, True])
def test_no_weight_goes_without_its_gradient_unsaid(
    transformers_model: Any, inputs: dict[str, Tensor], exported: Export, projector: bool
) -> None:
    model, pixels = transformers_model.requires_grad_(True), inputs["pixel_values"]
    with fvexport.patch(model, at_256(exported, projector=projector)):
        with pytest.raises(ConfigError, match="gives its weights no gradient; freeze them"):
            features(model, pixels).sum().backward()
        tower_of(model).requires_grad_(False)
        if projector:
            with pytest.raises(ConfigError, match="gives its weights no gradient"):
                features(model, pixels).sum().backward()
            model.model.multi_modal_projector.requires_grad_(False)
            assert not features(model, pixels).requires_grad
            return
        own = list(model.model.multi_modal_projector.parameters())
        got = torch.autograd.grad(features(model, pixels).sum(), own)
    wanted = torch.autograd.grad(features(model, pixels).sum(), own)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_it_comes_off_after_an_error(llava: Llava, exported: Export) -> None:
    own = llava.get_vision_tower()
    with pytest.raises(RuntimeError, match="mine"), fvexport.patch(llava, at_256(exported, "llava_tiny")):
        raise RuntimeError("mine")
    assert llava.get_vision_tower() is own


# --- the contract of a module ------------------------------------------------------------------


def test_a_patched_model_is_saved_whole(
    transformers_model: Any, inputs: dict[str, Tensor], exported: Export, tmp_path: Path
) -> None:
    model = transformers_model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    parameters = dict(model.named_parameters())
    with fvexport.patch(model, at_256(exported, projector=True)):
        assert model.state_dict().keys() == state.keys()
        assert [name for name, _ in model.named_modules()] == names
        assert dict(model.named_parameters()) == parameters
        model.save_pretrained(tmp_path / "saved")
        report = model.load_state_dict({name: tensor * 2 for name, tensor in state.items()})
        assert not report.missing_keys and not report.unexpected_keys
        assert torch.equal(model.model.vision_tower.state_dict()[TOWER], 2 * state[f"model.vision_tower.{TOWER}"])
        model.load_state_dict(state)
    saved = load_checkpoint(tmp_path / "saved").info
    own = load_checkpoint(at_256(exported).manifest.checkpoint.source).info
    assert (saved.sha256, saved.connector_sha256) == (own.sha256, own.connector_sha256)
    again = modeling_fast_vlm.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


TOWER = "timm_model.stem.0.reparam_conv.weight"


@pytest.mark.parametrize("kind", ["transformers", "llava"])
def test_moving_while_patched(
    transformers_model: Any, llava: Llava, inputs: dict[str, Tensor], exported: Export, kind: str
) -> None:
    model = transformers_model if kind == "transformers" else llava
    pixels = inputs["pixel_values"].bfloat16()
    form = "transformers_tiny" if kind == "transformers" else "llava_tiny"
    with fvexport.patch(model, at_256(exported, form)), torch.inference_mode():
        model.to(torch.bfloat16)
        patched = features(model, pixels)
        assert patched.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        own = features(model, pixels)
    assert own.dtype == torch.bfloat16
    assert float((patched - own).float().norm() / own.float().norm()) < 0.05


def features(model: Any, pixels: Tensor) -> Tensor:
    if isinstance(model, Llava):
        found: Tensor = model.encode_images(pixels)
        return found
    return model.get_image_features(pixels).pooler_output


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
@pytest.mark.parametrize("kind", ["transformers", "llava"])
def test_copies_are_not_patched(
    transformers_model: Any, llava: Llava, inputs: dict[str, Tensor], exported: Export, kind: str, how: str
) -> None:
    model = transformers_model if kind == "transformers" else llava
    form = "transformers_tiny" if kind == "transformers" else "llava_tiny"
    pixels = inputs["pixel_values"]
    with torch.no_grad(), fvexport.patch(model, at_256(exported, form)):
        calls = tower_of(model).calls
        copied = copy_of(model, how)
        tower_of(copied).calls = 0
        own, artifact = features(copied, pixels), features(model, pixels)
        assert (tower_of(copied).calls, tower_of(model).calls) == (1, calls)
    assert torch.allclose(own, artifact, atol=1e-4)
    assert tower_of(copied) is not tower_of(model)
    assert copied.state_dict().keys() == model.state_dict().keys()


def tower_of(model: Any) -> Any:
    return model.get_vision_tower() if isinstance(model, Llava) else model.model.vision_tower


def copy_of(model: Any, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    return torch.load(io.BytesIO(stream.getvalue()), weights_only=False)


def test_gradients_and_training_are_the_towers_own(
    transformers_model: Any, inputs: dict[str, Tensor], exported: Export, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformers_model
    pixels = inputs["pixel_values"].clone().requires_grad_()
    wanted = torch.autograd.grad(features(model, pixels).sum(), pixels)[0]
    calls = tower_of(model).calls
    with fvexport.patch(model, at_256(exported)):
        got = torch.autograd.grad(features(model, pixels).sum(), pixels)[0]
        assert torch.equal(got, wanted)
        assert tower_of(model).calls == calls + 1
        assert "the model's own vision tower runs for pixels that require a gradient" in caplog.text
        with torch.no_grad():
            features(model, pixels)  # no gradient is asked for
        assert tower_of(model).calls == calls + 1
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train()
        assert features(model, inputs["pixel_values"]).requires_grad
        assert tower_of(model).calls == calls + 2
        model.eval()
        with pytest.raises(ArtifactError, match="was made from other weights"):  # BatchNorm has counted that batch
            features(model, inputs["pixel_values"])
        model.load_state_dict(state)
        features(model, inputs["pixel_values"])
        assert tower_of(model).calls == calls + 2


def test_weights_that_change_while_patched(
    transformers_model: Any, inputs: dict[str, Tensor], exported: Export
) -> None:
    """The artifact keeps the weights that it was made from: it must not answer for others."""
    model, pixels = transformers_model, inputs["pixel_values"]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad(), fvexport.patch(model, at_256(exported)):
        before = features(model, pixels)
        model.load_state_dict({name: 2 * tensor for name, tensor in state.items()})
        with pytest.raises(ArtifactError, match="was made from other weights"):
            features(model, pixels)
        model.load_state_dict(state)
        assert torch.equal(features(model, pixels), before)
        model.to(torch.bfloat16).float()  # rounded now, whatever their type
        assert torch.allclose(features(model, pixels), before, atol=0.05)


def test_hidden_states_are_the_towers_own(transformers_model: Any, inputs: dict[str, Tensor], exported: Export) -> None:
    model, pixels = transformers_model, inputs["pixel_values"]
    calls = tower_of(model).calls
    with torch.no_grad(), fvexport.patch(model, at_256(exported)):
        model.get_image_features(pixels, output_hidden_states=True)
        assert tower_of(model).calls == calls + 1
        kinds = [type(tower_of(model)(pixels, return_dict=flag)) for flag in (True, False)]
        assert tower_of(model).calls == calls + 1
        assert issubclass(kinds[0], modeling_outputs.ModelOutput) and kinds[1] is tuple


def test_an_artifact_with_its_projector_refuses_what_the_tower_has_to_do(
    transformers_model: Any, inputs: dict[str, Tensor], exported: Export
) -> None:
    model, pixels = transformers_model, inputs["pixel_values"]
    with fvexport.patch(model, at_256(exported, projector=True)):
        with pytest.raises(ConfigError, match="cannot serve hidden states"):
            model.get_image_features(pixels, output_hidden_states=True)
        with pytest.raises(ConfigError, match="cannot serve pixels that require a gradient"):
            features(model, pixels.clone().requires_grad_())
        model.train()
        with pytest.raises(ConfigError, match=r"training mode \(call model.eval\(\)\)"):
            features(model, pixels)


def test_a_forward_of_its_own_comes_back(llava: Llava, exported: Export) -> None:
    """accelerate puts one into the instance too."""
    own = llava.get_vision_tower()
    wrapped = own.forward = functools.partial(type(own).forward, own)
    fvexport.patch(llava, at_256(exported, "llava_tiny")).restore()
    assert own.forward is wrapped


def test_pixels_for_a_uint8_artifact(transformers_model: Any, exported: Export) -> None:
    """Normalized floats become the nearest levels; what no image has is refused, not clipped."""
    artifact = exported("transformers_tiny", height=128, width=128, input="uint8")
    levels = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128), np.uint8)
    pixels = torch.from_numpy(artifact.manifest.preprocessor.config.normalize(levels))
    with torch.no_grad():
        own = features(transformers_model, pixels)
        with fvexport.patch(transformers_model, artifact):
            assert torch.allclose(features(transformers_model, pixels), own, atol=1e-4)
            for wrong in (2 * pixels - 1, 255 * pixels):
                with pytest.raises(FvexportError, match="normalize"):
                    features(transformers_model, wrong)


def test_the_documented_snippet_runs_twice(
    transformers_model: Any, golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ExportOptions(height=128, width=128)
    reports = []
    for _ in range(2):
        reports.append(fvexport.export_onnx(golden_dir / "transformers_tiny", options=options))
        with fvexport.patch(transformers_model, reports[-1].artifact):
            pass
        path = reports[0].artifact.path
        killed = path.with_name(f".{path.name}.writing-0a1b2c3d")  # what a killed run leaves
        if len(reports) == 1:
            killed.mkdir()
            (killed / "lock").touch()
    first, second = reports
    assert not first.reused and second.reused
    assert not killed.exists()
    assert second.artifact.path == first.artifact.path
    assert second.artifact.manifest.created == first.artifact.manifest.created
    assert any("used as it is" in notice for notice in second.notices)
    other = replace(options, opset=18)
    with pytest.raises(ArtifactError, match=r"holds another artifact \(its opset is 20, not 18\).*force=True"):
        fvexport.export_onnx(golden_dir / "transformers_tiny", second.artifact.path, options=other)
