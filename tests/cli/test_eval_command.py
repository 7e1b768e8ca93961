"""`fvexport eval` on a tiny FastVLM: metrics against the functions themselves, agreement, resuming, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "What is in this picture?"


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def timeless(path: Path) -> list[dict]:
    """The rows without what differs from run to run, in the data's order."""
    return sorted(
        ({name: value for name, value in row.items() if name != "timings"} for row in rows(path)),
        key=lambda row: (row["encoder"], row["line"]),
    )


def metrics(report: dict, index: int) -> dict:
    return {name: found["value"] for name, found in report["encoders"][index]["metrics"].items()}


@pytest.fixture
def evaluate(fvexport, vlm_dir: Path):
    def call(task: str, *args: object, checkpoint: Path = vlm_dir):
        command = ("eval", "--task", task, "--data", "data.jsonl", "--out", "out.jsonl", "--checkpoint", checkpoint)
        return fvexport(*command, *args)

    return call


@pytest.fixture
def damaged(vlm_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact whose GELUs are ReLUs: it runs, and its features are wrong."""
    import onnx

    folder = shutil.copytree(vlm_artifact, tmp_path / "damaged")
    model = onnx.load(folder / "encoder.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.op_type = "Relu"
            del node.attribute[:]
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["encoder.onnx"]["bytes"] = (folder / "encoder.onnx").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_vqa(evaluate, fvexport, vlm_dir: Path, vlm_artifact: Path, damaged: Path, pictures: list[Path],
             tmp_path: Path) -> None:  # fmt: skip
    """Labels made of the model's own answers, so that the metrics are not all 0."""
    from fvexport.benchmarks.tasks import answers
    from fvexport.encoder.fastvlm import Sampling, load_fastvlm

    vlm = load_fastvlm(vlm_dir)
    asked = f"{QUESTION}\nAnswer the question using a single word or phrase."
    said = [
        vlm.generate([picture], asked, resolution=(128, 128), sampling=Sampling(max_new_tokens=10)).text
        for picture in pictures[:3]
    ]
    labels = [[said[0]] * 5 + ["cat"] * 5, ["dog"] * 10, [said[2][:-1] + "x"]]
    written(
        tmp_path / "data.jsonl",
        *({"image": str(picture), "question": QUESTION, "answers": label}
          for picture, label in zip(pictures, labels, strict=False)),
        {"image": str(pictures[3]), "question": QUESTION},
        {"image": "none.png", "question": QUESTION, "answers": ["x"]},
    )  # fmt: skip
    options = ("--max-new-tokens", 10, "--artifact", vlm_artifact)
    outcome = evaluate("vqa", *options, "--artifact", damaged, "--json")
    assert outcome.code == 1 and "data.jsonl, line 5: no image" in outcome.err and "1 items failed" in outcome.err
    report = outcome.json
    assert report["items"] == 4 and {one["line"] for one in report["failed"]} == {5}
    eager, good, bad = report["encoders"]
    assert [one["encoder"] for one in report["encoders"]] == [
        "eager", "tiny-128 onnxruntime-cpu", "damaged onnxruntime-cpu"
    ]  # fmt: skip
    assert all(one["resolution"] == [128, 128] for one in report["encoders"])  # the artifacts', not the checkpoint's
    found = [row for row in rows(tmp_path / "out.jsonl") if row["encoder"] == "eager" and "answer" in row]
    assert [row["answer"] for row in found][:3] == said

    def mean(score, items: int) -> float:
        values = [score(text, label) for text, label in zip(said, labels, strict=True)]
        known = [value for value in values if value is not None]
        assert len(known) == items
        return sum(known) / items

    wanted = {
        "vqa_accuracy": mean(answers.vqa_accuracy, 2),  # the third has too few answers for it
        "anls": mean(answers.anls, 3),
        "relaxed_accuracy": mean(answers.relaxed_accuracy, 3),
        "exact_match": mean(answers.exact_match, 3),
    }
    assert metrics(report, 0) == pytest.approx(wanted) and wanted["exact_match"] > 0
    assert eager["agreement"] == {} and eager["metrics"]["anls"]["difference"] is None
    assert eager["metrics"]["vqa_accuracy"]["items"] == 2 and eager["metrics"]["anls"]["items"] == 3
    assert good["agreement"]["same_answer"]["value"] == good["agreement"]["same_first_token"]["value"] == 1
    assert good["agreement"]["same_answer"]["low"] == pytest.approx(4 / (4 + 1.959964**2))  # Wilson's, all of four
    assert good["metrics"]["anls"]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert bad["agreement"]["same_answer"]["value"] < 1
    difference = bad["metrics"]["anls"]["difference"]
    assert difference["value"] == pytest.approx(metrics(report, 2)["anls"] - metrics(report, 0)["anls"])
    assert difference["low"] <= difference["value"] <= difference["high"]

    outcome = evaluate("vqa", *options)
    assert outcome.code == 1 and max(map(len, outcome.out.splitlines())) <= 80
    for word in ("4 items", "tiny-128 onnxruntime-cpu", "same first token", "ANLS, difference", "fp32", "128x128"):
        assert word in outcome.out


def test_agreement_needs_no_labels(evaluate, vlm_artifact: Path, pictures: list[Path], tmp_path: Path) -> None:
    written(tmp_path / "data.jsonl", *({"image": str(p), "question": QUESTION} for p in pictures[:2]))
    outcome = evaluate("vqa", "--artifact", vlm_artifact, "--max-new-tokens", 2)
    assert outcome.code == 0 and outcome.err == "" and "no labels" in outcome.out and "same answer" in outcome.out


def test_caption(evaluate, vlm_artifact: Path, pictures: list[Path], tmp_path: Path) -> None:
    from fvexport.benchmarks.tasks.captions import bleu_4, bleu_statistics, captioned, cider_d, rouge_l

    captions = [["A cat sits on the mat.", "A cat."], ["The rocket stands on its pad."], []]
    items = [{"image": str(p), "captions": c} for p, c in zip(pictures, captions, strict=False)]
    written(tmp_path / "data.jsonl", *items)
    report = evaluate("caption", "--artifact", vlm_artifact, "--json", "--max-new-tokens", 12).json
    assert report["items"] == 3
    said = [row["answer"] for row in rows(tmp_path / "out.jsonl") if row["encoder"] == "eager"]
    images = [captioned(text, refs) for text, refs in zip(said[:2], captions[:2], strict=True)]
    assert metrics(report, 0) == pytest.approx({
        "cider_d": cider_d(images).mean(),
        "bleu_4": bleu_4(np.sum([bleu_statistics(image) for image in images], axis=0)),
        "rouge_l": np.mean([rouge_l(image) for image in images]),
    })  # fmt: skip
    assert all(found["items"] == 2 for found in report["encoders"][1]["metrics"].values())
    assert report["encoders"][1]["agreement"]["same_answer"]["value"] == 1

    # The words of one caption, as the model would have to say them.
    out = tmp_path / "out.jsonl"
    right = [row | {"answer": c[0]} if c else row for row, c in zip(rows(out), captions * 2, strict=True)]
    written(out, *right)
    report = evaluate("caption", "--artifact", vlm_artifact, "--json", "--max-new-tokens", 12).json
    assert metrics(report, 0)["bleu_4"] == pytest.approx(1) and metrics(report, 0)["rouge_l"] == pytest.approx(1)


def test_retrieval(
    evaluate, golden_dir: Path, vlm_dir: Path, vlm_artifact: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """Pictures of three kinds: the nearest of each is of its kind, with any encoder that works."""
    items = [{"image": str(picture), "label": number % 3} for number, picture in enumerate(pictures)]
    written(tmp_path / "data.jsonl", *items, {"image": "none.png"})
    outcome = evaluate("retrieval", "--artifact", vlm_artifact, "--json")
    assert outcome.code == 1 and "line 7: no image" in outcome.err
    eager, artifact = outcome.json["encoders"]
    assert {name: found["value"] for name, found in eager["metrics"].items()} == {
        "recall_at_1": 1, "recall_at_5": 1, "recall_at_10": 1
    }  # fmt: skip
    assert artifact["agreement"]["same_nearest"]["value"] == 1
    assert artifact["agreement"]["cosine"]["value"] == pytest.approx(1, abs=1e-6)
    assert artifact["agreement"]["shared_of_10_nearest"]["value"] == 1
    import torch

    from fvexport.benchmarks.tasks.retrieval import pooled, unpacked
    from fvexport.encoder.checkpoint import load_checkpoint
    from fvexport.encoder.preprocess import Preprocessor

    pixels = torch.from_numpy(Preprocessor(128, 128)(pictures[0]))
    wanted = pooled(load_checkpoint(vlm_dir).encoder(pixels).detach().numpy())[0]
    assert unpacked(rows(tmp_path / "out.jsonl")[0]["features"]) == pytest.approx(wanted, abs=1e-6)
    outcome = evaluate("retrieval", "--artifact", vlm_artifact)
    assert "R@1" in outcome.out and "cosine of features" in outcome.out

    # Any public form has an encoder; no language model is needed.
    (tmp_path / "out.jsonl").unlink()
    report = evaluate("retrieval", "--res", 64, "--json", checkpoint=golden_dir / "timm_tiny").json
    assert report["items"] == 6 and report["encoders"][0]["resolution"] == [64, 64]


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_an_interrupted_run_goes_on(
    evaluate, vlm_artifact: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    from fvexport.benchmarks.tasks.rows import Rows

    written(tmp_path / "data.jsonl", *({"image": str(p), "question": QUESTION, "label": "x"} for p in pictures[:3]))
    options = ["--artifact", vlm_artifact, *(["--max-new-tokens", 2] if task == "vqa" else [])]
    assert evaluate(task, *options).code == 0
    whole = timeless(tmp_path / "out.jsonl")
    assert len(whole) == 6
    (tmp_path / "out.jsonl").unlink()
    add = Rows.add

    def interrupted(rows: Rows, encoder: str, item, content) -> None:
        if encoder != "eager" and item.line == 2:
            raise KeyboardInterrupt
        add(rows, encoder, item, content)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "add", interrupted)
        outcome = evaluate(task, *options)
    assert outcome.code == 130 and outcome.err.strip() == "interrupted"
    before = (tmp_path / "out.jsonl").read_bytes()
    assert before.count(b"\n") == 4
    assert evaluate(task, *options).code == 0
    assert (tmp_path / "out.jsonl").read_bytes().startswith(before)
    assert timeless(tmp_path / "out.jsonl") == whole

    # One more encoder: it alone runs, and the eager model's rows serve again.
    pytest.importorskip("openvino")
    before = (tmp_path / "out.jsonl").read_bytes()
    report = evaluate(task, *options, "--backend", "onnxruntime-cpu", "--backend", "openvino", "--json").json
    assert [one["encoder"].split()[-1] for one in report["encoders"]] == ["eager", "onnxruntime-cpu", "openvino"]
    after = (tmp_path / "out.jsonl").read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 9


def test_refusals(evaluate, other_weights: Path, vlm_artifact: Path, pictures: list[Path], tmp_path: Path) -> None:
    written(tmp_path / "data.jsonl", {"image": str(pictures[0]), "question": QUESTION})
    evaluate("vqa", "--backend", "openvino").one_line_error("--backend has no effect without --artifact", code=2)
    evaluate("vqua").one_line_error("Did you mean 'vqa'?", code=2)
    evaluate("vqa", "--prompt", "What?").one_line_error("--prompt must hold {question}")
    evaluate("vqa", "--max-new-tokens", 0).one_line_error("max_new_tokens must be at least 1")
    evaluate("vqa", "--artifact", other_weights).one_line_error("made from other weights", "--force")
    evaluate("vqa", "--artifact", vlm_artifact, "--res", 64).one_line_error("128x128 alone")
    evaluate("retrieval", "--prompt", "x").one_line_error("--prompt has no effect with --task retrieval")
    evaluate("retrieval", "--anyres").one_line_error("--anyres has no effect with --task retrieval")
    evaluate("retrieval", "--res", 100).one_line_error("100x100", "64")
    assert not (tmp_path / "out.jsonl").exists()
    assert evaluate("vqa", "--max-new-tokens", 1, "--artifact", other_weights, "--force").code == 0
    evaluate("vqa", "--max-new-tokens", 1).one_line_error("other settings or weights")  # another resolution
    assert evaluate("vqa", "--max-new-tokens", 1, "--res", 128).code == 0
    evaluate("vqa", "--max-new-tokens", 2, "--res", 128).one_line_error("other settings or weights", "--out")
    written(tmp_path / "data.jsonl", {"image": str(pictures[1]), "question": QUESTION})
    evaluate("vqa", "--max-new-tokens", 1, "--res", 128).one_line_error("another line 1")
    written(tmp_path / "data.jsonl", {"image": str(pictures[1])})
    evaluate("vqa").one_line_error("data.jsonl, line 1", '"question"')


def test_every_item_failed(evaluate, vlm_artifact: Path, tmp_path: Path) -> None:
    written(tmp_path / "data.jsonl", {"image": "none.png", "question": QUESTION, "answers": ["x"] * 10})
    outcome = evaluate("vqa", "--artifact", vlm_artifact, "--json")
    assert outcome.code == 1 and outcome.json["items"] == 0 and outcome.json["encoders"][1]["agreement"] == {}
    assert evaluate("vqa", "--artifact", vlm_artifact).code == 1
