"""`fvexport parity`, `inspect` and `encode` on one artifact, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_parity_table_and_json(fvexport, artifact: Path, photo: Path) -> None:
    outcome = fvexport("parity", artifact, "--images", photo.name, "--layers")
    assert outcome.code == 0 and outcome.err == ""
    for word in ("parity: PASS", "every block is within its bound", "stages.3.blocks.0", "final_conv", photo.name):
        assert word in outcome.out
    answer = fvexport("parity", artifact, "--images", photo.name, "--json").json
    assert answer["passed"] is True and answer["status"] == "pass" and answer["images"] == [photo.name]
    plain = {"max_abs", "rel_l2", "cosine", "cosine_min", "sqnr_db", "finite"}
    assert answer["figures"].keys() == plain | {"centred_rel_l2", "centred_sqnr_db"}
    assert answer["figures"].keys() == answer["torch"].keys()
    assert answer["thresholds"]["rel_l2_floor"] == 1e-5


def test_parity_that_fails_exits_with_1(fvexport, copied: Path, photo: Path) -> None:
    import onnx

    model = onnx.load(copied / "encoder.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.name == "stages.2.blocks.0.mlp.act/Gelu")
    node.op_type = "Relu"
    del node.attribute[:]
    (copied / "encoder.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["encoder.onnx"]["bytes"] = (copied / "encoder.onnx").stat().st_size
    (copied / "manifest.json").write_text(json.dumps(manifest))

    outcome = fvexport("parity", copied, "--images", photo.name, "--layers")
    assert outcome.code == 1
    assert "parity: FAIL" in outcome.out and "first block over its bound: stages.2.blocks.0" in outcome.out
    outcome = fvexport("parity", copied, "--images", photo.name, "--json")
    assert outcome.code == 1 and outcome.json["passed"] is False


def test_inspect_table_and_json(fvexport, artifact: Path) -> None:
    outcome = fvexport("inspect", artifact)
    assert outcome.code == 0 and outcome.err == ""
    assert max(map(len, outcome.out.splitlines()[1:])) <= 80
    for word in ("38 Conv", "stage 1", "stage 5", "final_conv", "4 at 128x128", "encoder.onnx.data"):
        assert word in outcome.out
    answer = fvexport("inspect", artifact, "--json").json
    assert {"inputs", "outputs", "ops", "nodes", "parameters", "gmacs", "activation_bytes", "tokens", "precision",
            "opset", "files", "stages", "resolution"} <= answer.keys()  # fmt: skip
    assert answer["inputs"] == [{"name": "pixel_values", "dtype": "float32", "shape": [1, 3, 128, 128]}]
    assert answer["tokens"] == 4 and answer["resolution"] == [128, 128]
    assert sum(stage["parameters"] for stage in answer["stages"]) == answer["parameters"]


def test_roofline_of_an_artifact(fvexport, artifact: Path) -> None:
    outcome = fvexport("inspect", artifact, "--roofline", "--gpu", "l4")
    assert outcome.code == 0 and outcome.err == ""
    table, _, notes = outcome.out.partition("note: ")
    assert max(map(len, table.splitlines())) <= 80 and "fused MLP" in notes
    for word in ("tiny", "121 TFLOP/s", "300 GB/s", "128x128:", "2 × stages.2.blocks", "depthwise", "linear_residual"):
        assert word in table
    answer = fvexport("inspect", artifact, "--roofline", "--json").json
    assert answer["gpu"]["name"] == "h100" and answer["batch"] == 1 and answer["variant"] == "tiny"
    (floor,) = answer["floors"]
    assert floor["resolution"] == [128, 128]
    stages = fvexport("inspect", artifact, "--json").json["gmacs"]
    assert floor["gmacs"] + floor["attention_gmacs"] == pytest.approx(stages, rel=1e-6)


def test_roofline_without_an_artifact(fvexport) -> None:
    outcome = fvexport("inspect", "--roofline")
    assert outcome.code == 0 and "236.51 GMAC per image" in outcome.out
    assert all(f"{side}x{side}:" in outcome.out for side in (256, 512, 768, 1024, 1536, 2048))
    rates = ("--tflops", 50, "--bandwidth", 100)
    answer = fvexport(
        "inspect", "--roofline", *rates, "--res", "256,128x64", "--batch", 3, "--variant", "tiny", "--json"
    )
    assert [floor["resolution"] for floor in answer.json["floors"]] == [[256, 256], [128, 64]]
    assert answer.json["gpu"] == {"name": "custom", "tflops": 50, "fp32_tflops": None, "bandwidth": 100}
    known = fvexport("inspect", "--roofline", "--gpu", "a100", "--bandwidth", 1555, "--json").json
    least = fvexport("inspect", "--roofline", "--gpu", "a100-40gb", "--json").json
    assert known["floors"] == least["floors"]


def test_roofline_refusals(fvexport, artifact: Path) -> None:
    fvexport("inspect").one_line_error("ARTIFACT", code=2)
    fvexport("inspect", artifact, "--gpu", "l4").one_line_error("--gpu is for --roofline", code=2)
    fvexport("inspect", artifact, "--roofline", "--variant", "tiny").one_line_error("--variant", code=2)
    fvexport("inspect", "--roofline", "--gpu", "h1000").one_line_error("Did you mean 'h100'", code=2)
    fvexport("inspect", "--roofline", "--tflops", 3).one_line_error("--bandwidth", code=2)
    fvexport("inspect", "--roofline", "--res", "a").one_line_error("resolution", code=2)
    fvexport("inspect", "--roofline", "--res", "100").one_line_error("multiple of 64")
    fvexport("inspect", "--roofline", "--gpu", "l4", "--bandwidth", 0).one_line_error("positive")


def test_encode_table_and_json(fvexport, artifact: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.open(photo).save(tmp_path / "more" / name)
    outcome = fvexport("encode", photo.name, "more", "--artifact", artifact, "--out", "f.safetensors")
    assert outcome.code == 0 and outcome.err == "" and "f.safetensors" in outcome.out
    assert "backend   onnxruntime-cpu (" in outcome.out
    with safe_open(tmp_path / "f.safetensors", "np") as file:
        assert set(file.keys()) == {"photo.png", "more/a.png", "more/b.jpg"}
        assert np.array_equal(file.get_tensor("photo.png"), file.get_tensor("more/a.png"))
    fvexport("encode", photo.name, "--artifact", artifact, "--out", "f.safetensors").one_line_error("--force")
    args = ("--artifact", artifact, "--out", "f.safetensors", "--force", "--batch-size", 2, "--json")
    answer = fvexport("encode", photo.name, *args).json
    assert answer.keys() == {
        "out", "encoded", "resumed", "failed_count", "failed", "seconds", "shape", "dtype", "form", "backend",
        "backend_why",
    }  # fmt: skip
    assert answer["backend"] == "onnxruntime-cpu" and answer["backend_why"]
    assert answer["encoded"] == 1 and answer["failed"] == [] and answer["shape"] == [4, 256]


def test_a_bad_image_is_reported_and_the_others_go_on(fvexport, artifact: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    images = ("text.jpg", photo.name, "missing.png")
    outcome = fvexport("encode", *images, "--artifact", artifact, "--out", "f.safetensors")
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "text.jpg holds text" in lines[0] and "missing.png" in lines[1] and "2 of 3 images failed" in lines[2]
    with safe_open(tmp_path / "f.safetensors", "np") as file:
        assert list(file.keys()) == ["photo.png"]

    outcome = fvexport("encode", "text.jpg", "--artifact", artifact, "--out", "g.safetensors", "--json")
    assert outcome.code == 1 and outcome.json["encoded"] == 0 and "nothing was written" in outcome.err
    assert outcome.json["failed"][0]["image"] == "text.jpg"
    assert not (tmp_path / "g.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--res", "256"], ["128x128 alone", "--dynamic-res"]),
        (["--res", "100"], ["128x128 alone"]),
        (["--batch-size", "0"], ["--batch-size", "at least 1"]),
    ],
)
def test_encode_refusals(fvexport, artifact: Path, photo: Path, args: list[str], parts: list[str]) -> None:
    command = ("encode", photo.name, "--artifact", artifact, "--out", "f.safetensors")
    fvexport(*command, *args).one_line_error(*parts)
    assert not Path("f.safetensors").exists()


def test_encode_an_empty_folder(fvexport, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    fvexport("encode", "none", "--artifact", artifact, "--out", "f").one_line_error("no image in folder none")


def _corrupt(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def _gone(folder: Path) -> None:
    (folder / "encoder.onnx.data").unlink()


def _truncated(folder: Path) -> None:
    content = (folder / "encoder.onnx.data").read_bytes()
    (folder / "encoder.onnx.data").write_bytes(content[: len(content) // 2])


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "part"),
    [(_corrupt, "manifest.json"), (_gone, "encoder.onnx.data"), (_truncated, "encoder.onnx.data"),
     (_no_manifest, "manifest.json")],
)  # fmt: skip
def test_a_damaged_artifact(fvexport, copied: Path, photo: Path, damage, part: str) -> None:
    damage(copied)
    for command in (
        ("inspect", copied),
        ("parity", copied),
        ("encode", photo.name, "--artifact", copied, "--out", "f.safetensors"),
    ):
        fvexport(*command).one_line_error(part)
        fvexport(*command, "--json").one_line_error(part)
    assert not Path("f.safetensors").exists()


def test_no_artifact(fvexport, photo: Path) -> None:
    fvexport("inspect", "nowhere").one_line_error("no artifact at nowhere", "fvexport onnx")
    fvexport("parity", photo.name).one_line_error("photo.png is a file")
