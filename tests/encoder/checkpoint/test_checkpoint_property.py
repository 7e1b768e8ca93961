"""However a checkpoint is damaged, loading ends in a CheckpointError with the file's names, or in the same model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fvexport.core.errors import CheckpointError
from fvexport.encoder.checkpoint import load_checkpoint
from fvexport.encoder.checkpoint.forms import FORMS, Naming

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
DAMAGES = ("drop", "rename", "reshape", "scalar", "integer", "nan", "empty")
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def damaged(tensor: torch.Tensor, how: str) -> torch.Tensor:
    changed = {
        "reshape": lambda: torch.cat([tensor.reshape(-1), torch.ones(3)]),
        "scalar": lambda: torch.zeros(()),
        "integer": lambda: torch.ones(tensor.shape, dtype=torch.int64),
        "nan": lambda: torch.full(tensor.shape, float("nan")),
        "empty": lambda: torch.zeros(0),
    }
    return changed[how]()


@pytest.mark.parametrize("checkpoint", ["llava_tiny", "timm_tiny", "transformers_tiny"])
@quick
@given(data=st.data())
def test_damage_never_passes(checkpoint: str, data: st.DataObject) -> None:
    tensors = load_file(GOLDEN / checkpoint / "model.safetensors")
    needed = sorted(n for n in tensors if "num_batches" not in n and "head." not in n)
    needed = [n for n in needed if checkpoint == "timm_tiny" or "vision_tower" in n or "projector" in n]
    # From one tensor to more than half of them.
    hit = data.draw(st.lists(st.sampled_from(needed), min_size=1, max_size=len(needed), unique=True))
    touched = set()
    for name in hit:
        how = data.draw(st.sampled_from(DAMAGES))
        value = tensors.pop(name)
        other = name.rpartition(".")[0] + ".other"
        if how == "rename":
            tensors[other] = value
        elif how != "drop":
            tensors[name] = damaged(value, how)
        touched |= {name, other}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file(tensors, file)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(file)
    message = str(caught.value)
    assert message.isprintable()
    # Unfit: it names a tensor that was touched. Too damaged to be recognized: it names what is there.
    known = touched if "unfit" in message else tensors
    assert any(name in message for name in known) or "of no FastViTHD" in message


@quick
@given(data=st.data())
def test_what_is_not_the_encoders_changes_nothing(data: st.DataObject) -> None:
    tensors = load_file(GOLDEN / "llava_tiny" / "model.safetensors")
    wanted = load_checkpoint(GOLDEN / "llava_tiny" / "model.safetensors").info
    free = sorted(n for n in tensors if ("vision_tower" not in n and "projector" not in n) or "num_batches" in n)
    for name in data.draw(st.lists(st.sampled_from(free), unique=True)):
        value = tensors.pop(name)
        how = data.draw(st.sampled_from(["drop", "scalar", "integer", "nan", "reshape"]))
        if how != "drop":
            tensors[name] = damaged(value, how)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file(tensors, file)
        found = load_checkpoint(file).info
    assert (found.sha256, found.connector_sha256, found.form) == (wanted.sha256, wanted.connector_sha256, "llava")


SEGMENTS = [
    "patch_embed", "stem", "network", "stages", "0", "5", "6", "10", "blocks", "se", "reduce", "fc1", "mlp", "convffn",
    "layer_scale", "gamma", "pe", "pos_enc", "proj", "lkb_reparam", "reparam_conv", "weight",
]  # fmt: skip
NAMES = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=8).map(".".join)


@given(st.sets(NAMES, min_size=2))
@example({"network.0.0.mlp.fc1.weight", "network.0.0.convffn.fc1.weight"})
@example({"stages.0.blocks.0.mlp.fc1.weight", "network.0.0.convffn.fc1.weight"})
def test_no_two_names_fill_one_tensor(names: set[str]) -> None:
    for form in FORMS:
        naming = Naming(form, form.prefixes[-1])
        read = [naming.canonical(naming.prefix + name) for name in names]
        kept = [name for name in read if name is not None]
        assert len(set(kept)) == len(kept)
