"""Whatever is wrong with a checkpoint, one line says what, with the file's own names, and what mends it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fvexport.core.errors import CheckpointError, ConfigError
from fvexport.encoder import reparameterize
from fvexport.encoder.checkpoint import load_checkpoint

Tensors = dict[str, Tensor]
Write = Callable[..., Path]
LLAVA = "model.vision_tower.vision_tower.model."
FC1 = f"{LLAVA}network.4.1.convffn.fc1.weight"
PROJ = f"{LLAVA}network.7.0.token_mixer.proj.weight"


def refusal(source: Any, *parts: str, **options: Any) -> str:
    """The message of the CheckpointError that `source` must end in; it must hold all `parts`."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(source, **options)
    message = str(caught.value)
    assert message.isprintable(), message  # one line
    assert len(message) < 1000
    for part in parts:
        assert part in message, message
    return message


# --- not found, not readable -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("", ["path is empty"]),
        ("nowhere", ["no such file or folder", "hub id"]),
        ("./no/such.safetensors", ["no such file or folder"]),
        ("no/such.safetensors", ["no such file or folder"]),
        (Path("apple/FastVLM-0.5B"), ["no such file or folder"]),  # a Path is never a hub id
        ("https://huggingface.co/apple/FastVLM-0.5B/tree/main", ["give apple/FastVLM-0.5B alone"]),
        ("bad\0name", ["bad name"]),
        pytest.param(
            "/dev/null",
            ["neither a file nor a folder"],
            marks=pytest.mark.skipif(os.name != "posix", reason="a device of POSIX"),
        ),
        ("two\nlines", ["two lines: no such file"]),
    ],
)
def test_no_such_source(source: str | Path, parts: list[str]) -> None:
    refusal(source, *parts)


def test_revision_without_a_repository(tmp_path: Path) -> None:
    refusal(tmp_path, "revision 'v1' was asked of a local path", revision="v1")
    refusal(None, "revision 'v1' was given without a source", revision="v1")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.safetensors", b"", ["is empty", "download it again"]),
        ("a.pt", b"", ["is empty"]),
        ("a.safetensors", b"<!DOCTYPE html><html>", ["is a web page"]),
        ("a.pt", b"\n  <html>", ["is a web page"]),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", ["git lfs pull"]),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", ["git lfs pull"]),
        ("a.pt", b'{"error": "not found"}', ["is JSON text"]),
        ("a.safetensors", b"\x10\x00\x00", ["is cut off or not a safetensors file"]),
        ("a.safetensors", struct.pack("<Q", 40) + b'{"a":', ["is cut off or damaged"]),
        ("a.safetensors", struct.pack("<Q", 12) + b"{not json...}", ["is cut off or damaged"]),
        ("a.onnx", b"\x08\x07\x12\x07pytorch", ["not weights", "give a .safetensors, .pt, .pth or .bin file"]),
        ("a.pt", b"PK\x03\x04" + bytes(100), ["is cut off or damaged"]),
        ("a.pt", b"\x80\x02", ["a.pt"]),
    ],
)
def test_file_that_is_no_weights(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name, *parts)
    refusal(tmp_path, *parts if not name.endswith(".onnx") else ["holds no weights", "found a.onnx"])


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "old.pt"])
@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_truncated(llava: Tensors, write: Write, name: str, kept: float) -> None:
    file = write(llava, name=name) / name
    if name == "old.pt":
        torch.save(llava, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    refusal(file, name, "cut off or" if name != "old.pt" else "")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user of the machine may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def no_privileges() -> Iterator[None]:
    """Root may read everything: become nobody for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_no_permission(open_folder: Path, llava: Tensors, request: pytest.FixtureRequest) -> None:
    file = open_folder / "weights.pt"
    torch.save(llava, file)
    load_checkpoint(file)
    file.chmod(0)
    locked = open_folder / "locked"
    locked.mkdir(mode=0o000)
    request.getfixturevalue("no_privileges")
    refusal(file, "weights.pt: cannot be read (Permission denied)", "check its permissions")
    refusal(locked, "cannot be listed (Permission denied)")
    refusal(locked / "model.safetensors", "Permission denied")


# --- folders and indexes -----------------------------------------------------------------------


def test_folder_without_weights(tmp_path: Path) -> None:
    refusal(tmp_path, "holds no weights", "it is empty")
    (tmp_path / "README.md").write_text("hello")
    torch.save({}, tmp_path / "training_args.bin")
    refusal(tmp_path, "holds no weights", "README.md, training_args.bin", "give a folder with model.safetensors")


def test_folder_with_several_weights(write: Write, timm: Tensors) -> None:
    folder = write(timm, name="a.pt")
    write(timm, name="b.pth")
    refusal(folder, "holds 2 weights files (a.pt, b.pth)", "give the path of one")


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": ', "version https://git-lfs.github.com/spec/v1", "[" * 100_000])
def test_broken_config(write: Write, timm: Tensors, text: str) -> None:
    refusal(write(timm, config=text), "config.json is not a JSON object")


def test_missing_shard(llava: Tensors, write_shards: Callable[[list[Tensors]], Path]) -> None:
    names = sorted(llava)
    folder = write_shards([{n: llava[n] for n in names[:90]}, {n: llava[n] for n in names[90:]}])
    (folder / "model-00002-of-00002.safetensors").unlink()
    refusal(folder, "the shard model-00002-of-00002.safetensors is missing")


def test_shard_without_what_its_index_promises(llava: Tensors, write_shards: Callable[[list[Tensors]], Path]) -> None:
    folder = write_shards([llava])
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    lost = llava.pop(FC1)
    write_shards([llava])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(folder, f"the shard model-00001-of-00001.safetensors lacks {FC1}, which the index places there")
    assert lost.numel()


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "", 7, None, "é" * 130, "a\0b", "\ud800"],
)
def test_index_that_leaves_its_folder(
    llava: Tensors, write_shards: Callable[[list[Tensors]], Path], shard: object
) -> None:
    folder = write_shards([llava])
    file = folder / "model.safetensors.index.json"
    shutil.copy(folder / "model-00001-of-00001.safetensors", folder.parent / "x.safetensors")
    file.write_text(json.dumps({"weight_map": dict.fromkeys(llava, shard)}))
    refusal(folder, "model.safetensors.index.json names the shard", "cannot be in its folder")


@pytest.mark.parametrize("content", [{}, {"weight_map": ["a"]}, {"weight_map": None}])
def test_index_without_a_map(tmp_path: Path, content: dict) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    refusal(tmp_path, "model.safetensors.index.json has no weight_map")


# --- names and files that no checkpoint has ------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json", "0.safetensors"])
def test_a_fifo_in_a_folder(write: Write, timm: Tensors, name: str) -> None:
    """Refused without waiting for a writer."""
    folder = write(timm, config={})
    (folder / "model.safetensors").rename(folder / "0.safetensors")
    if not name.startswith("model"):
        index = {"weight_map": dict.fromkeys(timm, "0.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refusal(folder, f"{name} cannot be read (is a FIFO, not a regular file)")


def test_paths_that_are_too_long(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), Path("x/" * 3000)):
        refusal(path, "File name too long")


NINES = "9" * 5000  # more digits than Python makes a number of


@pytest.mark.parametrize("name", ["stages.{}.x", "stages.0.blocks.{}.mlp.fc1.weight"])
def test_names_with_large_numbers(write: Write, timm: Tensors, name: str) -> None:
    refusal(write(timm | {name.format("9" * 900): torch.zeros(3)}), "1 surplus (stages")
    refusal(write(timm | {name.format(NINES): torch.zeros(3)}), "a tensor with a name of 50")


@pytest.mark.timeout(20)
def test_names_of_any_length(write: Write, timm: Tensors) -> None:
    name = "image_encoder." * 200_000  # a pattern that is looked for in it would take hours
    refusal(write(timm | {name: torch.zeros(1)}), "a tensor with a name of 2800000 characters, image_encoder")


def test_shapes_of_any_size(write: Write, llava: Tensors) -> None:
    """Tensors without values may have any: a layer that wide has more weights than 64 bits can count."""
    connector = {name: torch.zeros(2**40, 0) for name in llava if "mm_projector" in name}
    refusal(write(llava | connector), "4 of wrong shape (model.mm_projector.0.weight is (1099511627776, 0)")
    refusal(write({name: torch.zeros(2**62, 0) for name in llava}), "shapes are all damaged")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlp17x_gelu", "mlp1000000x_gelu", f"mlp{NINES}x_gelu"])
def test_connectors_of_any_depth(write: Write, llava: Tensors, kind: str) -> None:
    refusal(write(llava, config={"mm_projector_type": kind}), "unknown connector 'mlp", "mlp1x_gelu to mlp16x_gelu")


@pytest.mark.parametrize("tower", [f"x_{NINES}", "x_0", "x_64000", "x_100", "x_٦٤"])
def test_towers_of_no_resolution(write: Write, llava: Tensors, tower: str) -> None:
    assert load_checkpoint(write(llava, config={"mm_vision_tower": tower})).info.resolution is None


# --- pickles -----------------------------------------------------------------------------------


class Code:
    """Writes a file when it is unpickled by an unpickler that runs what it is told."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("save", ["zip", "old", "plain"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, timm: Tensors, save: str) -> None:
    marker, file = tmp_path / "ran", tmp_path / "weights.pt"
    content = {"state_dict": timm, "callback": Code(marker)}
    if save == "plain":
        file.write_bytes(pickle.dumps({"callback": Code(marker)}, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=save == "zip")
    refusal(file, "weights.pt: was refused and nothing in it was run", "system", "state dict")
    assert not marker.exists()


def test_pickle_that_needs_classes(tmp_path: Path, timm: Tensors) -> None:
    torch.save({"state_dict": timm, "args": Namespace(lr=1)}, tmp_path / "weights.pt")
    refusal(tmp_path / "weights.pt", "its pickle asks for argparse.Namespace")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit itself
def test_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "program.pt")
    refusal(tmp_path, "program.pt is a TorchScript program, which is not run")


@pytest.mark.parametrize(
    ("content", "what"),
    [([torch.ones(2)], "a list"), (torch.ones(2), "a Tensor"), (3, "a int"), ({1: torch.ones(2)}, "no named tensors")],
)
def test_pickle_without_names(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    refusal(tmp_path, f"weights.pt holds {what}", "give a file with a state dict")


def test_numpy_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    message = refusal(tmp_path / "a.npz", "a.npz: is a NumPy archive, not PyTorch's")
    assert "download it again" not in message


def test_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    refusal(tmp_path, "model.bin is a GGUF file of llama.cpp", "give the checkpoint that it was converted from")


def test_dtype_that_safetensors_does_not_know(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F2_E1", "shape": [4], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    message = refusal(tmp_path, "holds tensors of dtype F2_E1, which this safetensors cannot read")
    assert "download it again" not in message


# --- other models ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["cls_token", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"], "a ViT"),
        (["vit.encoder.layer.0.attention.attention.query.weight"], "a ViT"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.embeddings.x"], "a CLIP or SigLIP"),
        (["visual.transformer.resblocks.0.attn.in_proj_weight", "logit_scale"], "a CLIP whose image tower is a ViT"),
        (["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"], "a language model"),
        (["transformer.h.0.attn.c_attn.weight"], "a language model"),
        (
            ["model.layers.0.self_attn.q_proj.weight", "model.vision_tower.vision_tower.vision_model.x.weight"],
            "a LLaVA whose vision tower is a CLIP ViT",
        ),
        (
            ["model.layers.0.self_attn.q_proj.weight", "visual.patch_embed.proj.weight"],
            "a vision-language model with another image encoder",
        ),
        (["stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "stages.0.blocks.0.mlp.fc1.weight"], "a ConvNeXt"),
        (["conv1.weight", "layer1.0.conv1.weight"], "a ResNet"),
        (["model.mm_projector.0.weight", "model.mm_projector.2.weight"], "the connector of a FastVLM or LLaVA alone"),
        (["foo", "bar"], "a model unknown to this program"),
        ([], "a model unknown to this program"),
    ],
)
def test_other_models(write: Write, names: list[str], what: str) -> None:
    parts = [f"with tensors such as {sorted(names)[0]}"] if names else []
    refusal(write({n: torch.ones(4, 4) for n in sorted(names)}), "is no FastViTHD", what, *parts)


@pytest.mark.parametrize("form", ["timm", "mobileclip"])
def test_four_stage_fastvit(renamed: Callable[[str, str], Tensors], write: Write, form: str) -> None:
    last = ("network.8.", "network.9.", "network.10.", "stages.4.")
    four = {n: t for n, t in renamed("train", form).items() if not any(part in n for part in last)}
    refusal(write(four), "is no FastViTHD", "a four-stage FastViT (MobileCLIP S0 to S2", "five stages")


def test_fused_weights(write: Write, golden_dir: Path) -> None:
    fused = reparameterize(load_checkpoint(golden_dir / "timm_tiny").encoder)
    refusal(write(fused.state_dict()), "a FastViTHD that was fused already", "surplus", "missing")


# --- unfit tensors -----------------------------------------------------------------------------


def test_one_error_tells_everything(llava: Tensors, write: Write) -> None:
    qkv = f"{LLAVA}network.10.0.token_mixer.qkv.weight"
    for stage in (0, 2, 7):
        del llava[f"{LLAVA}network.{stage}.0.convffn.fc2.bias"]
    del llava[f"{LLAVA}network.6.reparam_conv.bias"], llava["model.mm_projector.2.bias"]
    llava[f"{LLAVA}network.3.extra"] = torch.ones(1)
    llava[FC1] = llava[FC1][:, :5]
    llava[PROJ] = llava[PROJ].to(torch.int32)
    llava[qkv] = llava[qkv].T
    message = refusal(
        write(llava),
        f"5 missing ({LLAVA}network.0.0.convffn.fc2.bias, {LLAVA}network.2.0.convffn.fc2.bias, ",
        "and 2 more)",
        f"1 surplus ({LLAVA}network.3.extra)",
        f"2 of wrong shape ({FC1} is (128, 5, 1, 1), not (128, 32, 1, 1), {qkv} is (128, 384), not (384, 128))",
        f"1 not floating point ({PROJ} (int32))",
        "it seems to be a FastViTHD in LLaVA form",
        "dims (8, 16, 32, 64, 128)",
        "give the checkpoint that it was converted from",
    )
    assert "download it again" not in message  # nothing in it speaks for damage
    assert "stages." not in message  # the file's names, not ours


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(llava: Tensors, write: Write, value: float) -> None:
    for name in (FC1, "model.mm_projector.0.bias"):
        llava[name].view(-1)[-1] = value
    refusal(write(llava), f"2 with NaN or infinity ({FC1}, model.mm_projector.0.bias)", "download it again")


def test_infinity_out_of_float64(llava: Tensors, write: Write) -> None:
    llava[FC1] = llava[FC1].double() * 1e300
    refusal(write(llava), f"1 with NaN or infinity ({FC1})")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (8, 1), (4, 4, 4, 4, 4), (1 << 20, 1)])
@pytest.mark.parametrize(
    "name", ["network.0.0.convffn.fc1.weight", "network.4.0.layer_scale", "conv_exp.se.reduce.weight",
             "patch_embed.0.reparam_conv.weight", "network.9.reparam_conv.weight"],
)  # fmt: skip
def test_damaged_shapes(llava: Tensors, write: Write, name: str, shape: tuple[int, ...]) -> None:
    llava[LLAVA + name] = torch.zeros(shape)
    refusal(write(llava), f"1 of wrong shape ({LLAVA}{name} is {shape}")


def test_all_shapes_damaged(llava: Tensors, write: Write) -> None:
    scalars = {name: torch.zeros(()) for name in llava}
    refusal(write(scalars), "is no FastViTHD", "a FastViTHD whose shapes are all damaged")


@pytest.mark.parametrize("stage", ["0", "2", "10"])
def test_lost_stage(llava: Tensors, write: Write, stage: str) -> None:
    lost = [name for name in llava if name.startswith(f"{LLAVA}network.{stage}.")]
    kept = {name: tensor for name, tensor in llava.items() if name not in lost}
    refusal(write(kept), f"{len(lost) - 1} missing ({LLAVA}network.{stage}.0.", "dims (8, 16, 32, 64, 128)")


def test_impossible_widths(llava: Tensors, write: Write) -> None:
    wide = {n: torch.zeros([s + 1 if i < 2 and s > 1 else s for i, s in enumerate(t.shape)]) for n, t in llava.items()}
    refusal(write(wide), "its tensors are of no FastViTHD", "dim")


def test_block_number_out_of_all_bounds(llava: Tensors, write: Write) -> None:
    stray = f"{LLAVA}network.4.99999999.convffn.fc1.weight"
    refusal(write(llava | {stray: torch.ones(1)}), f"1 surplus ({stray})")


def test_names_of_both_vocabularies_do_not_meet(llava: Tensors, write: Write) -> None:
    twin = FC1.replace("convffn", "mlp")
    refusal(write(llava | {twin: llava[FC1].clone()}), f"1 surplus ({twin})")


def test_names_cannot_break_the_line(llava: Tensors, write: Write) -> None:
    refusal(write(llava | {f"{LLAVA}\n\x1b[31m{'x' * 900}": torch.ones(1)}), "1 surplus")


def test_pickle_values_that_are_no_tensors(llava: Tensors, write: Write) -> None:
    changed: dict[str, Any] = dict(llava) | {FC1: "text", PROJ: torch.ones(64, 64).to_sparse()}
    changed["model.mm_projector.0.bias"] = torch.ones(64, device="meta")
    parts = [f"{FC1} (str)", f"{PROJ} (without plain values)", "model.mm_projector.0.bias (without plain values)"]
    refusal(write(changed, name="weights.pt"), "3 not floating point", *parts)


def test_lost_block_that_the_config_knows_of(llava: Tensors, write: Write) -> None:
    lost = [name for name in llava if name.startswith(f"{LLAVA}network.4.1.")]
    kept = {name: tensor for name, tensor in llava.items() if name not in lost}
    config = {"vision_layers": [1, 1, 2, 1, 1]}
    refusal(
        write(kept, config=config),
        f"{len(lost) - 1} missing ({LLAVA}network.4.1.token_mixer.reparam_conv.weight, ",
        "check the depths in config.json (1, 1, 2, 1, 1) against the tensors' (1, 1, 1, 1, 1)",
    )


def test_config_with_fewer_blocks_than_the_tensors(llava: Tensors, write: Write) -> None:
    refusal(
        write(llava, config={"vision_layers": [1, 1, 1, 1, 1]}),
        f"surplus ({LLAVA}network.4.1.",
        "check the depths in config.json (1, 1, 1, 1, 1) against the tensors' (1, 1, 2, 1, 1)",
    )


def test_other_variant(golden_dir: Path) -> None:
    message = refusal(golden_dir / "llava_tiny", "dims (8, 16, 32, 64, 128)", variant="fastvithd")
    assert "(96, 192, 384, 768, 1536)" in message
    assert "give tiny" in message
    with pytest.raises(ConfigError, match="tiny"):
        load_checkpoint(golden_dir / "llava_tiny", variant="tinny")


# --- connectors --------------------------------------------------------------------------------


def test_connector_required_but_absent(golden_dir: Path) -> None:
    refusal(golden_dir / "timm_tiny", "has no connector", "apple/FastVLM-0.5B", require_connector=True)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (
            "linear",
            [
                "2 missing (model.mm_projector.weight, model.mm_projector.bias)",
                "4 surplus",
                "check mm_projector_type in config.json 'linear' against the tensors' mlp2x_gelu",
            ],
        ),
        ("mlp3x_gelu", ["2 missing (model.mm_projector.4.weight, model.mm_projector.4.bias)"]),
        ("resampler", ["has no usable connector", "unknown connector 'resampler'", "mm_projector_type"]),
        ("identity", ["4 surplus (model.mm_projector.0.bias"]),
    ],
)
def test_connector_other_than_the_config_says(llava: Tensors, write: Write, kind: str, parts: list[str]) -> None:
    refusal(write(llava, config={"mm_projector_type": kind}), *parts)


def test_activation_of_the_connector(golden: Callable[[str], Tensors], write: Write) -> None:
    tensors = golden("transformers_tiny")
    refusal(write(tensors, config={"projector_hidden_act": "relu"}), "config.json says projector_hidden_act 'relu'")
    assert load_checkpoint(write(tensors, config={"projector_hidden_act": "gelu"})).connector is not None


def test_connector_of_another_encoder(golden: Callable[[str], Tensors], write: Write) -> None:
    tensors, name = golden("transformers_tiny"), "model.multi_modal_projector.linear_1.weight"
    refusal(write(tensors | {name: torch.ones(64, 100)}), f"{name} is (64, 100), not (64, 256)")
    refusal(write(tensors | {name: torch.ones(())}), f"{name} is (), not (64, 256)")
    stray = "model.multi_modal_projector.linear_3.weight"
    refusal(write(tensors | {stray: torch.ones(64, 64)}), f"1 surplus ({stray})")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("key", ["state_dict", "other"])
def test_pickles_within_themselves(tmp_path: Path, timm: Tensors, key: str) -> None:
    content: dict[str, Any] = {"model": {}}
    content["model"][key] = content
    torch.save(content, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt", "a.pt: ")
    torch.save(timm | {"extra": content}, tmp_path / "b.pt")
    refusal(tmp_path / "b.pt", "1 surplus (extra)")


@pytest.mark.timeout(20)
def test_pickled_tensors_without_their_values(tmp_path: Path, timm: Tensors) -> None:
    """Of one value that is repeated, of other layouts, and without any."""
    name = "stages.0.blocks.0.mlp.fc1.weight"
    for tensor in (
        torch.zeros(1).expand(2**40), torch.zeros(2**30, device="meta"), torch.zeros_like(timm[name]).to_sparse(),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    ):  # fmt: skip
        torch.save(timm | {name: tensor}, tmp_path / "a.pt")
        refusal(tmp_path / "a.pt", f"1 not floating point ({name} (without plain values))")
