"""`fvexport ask` on a tiny FastVLM: answers, turns, batches, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "What is in this picture?"
LINE = (
    r"^\[encoder (\d+) ms, prefill (\d+) ms, TTFT (\d+) ms, ([\d.]+) tokens/s, (\d+) visual tokens; "
    r"(.+) at (\d+x\d+)(, stopped at --max-new-tokens)?\]$"
)


@pytest.fixture(scope="module")
def vlm(vlm_dir: Path):
    from fvexport.encoder.fastvlm import load_fastvlm

    return load_fastvlm(vlm_dir)


def sampling(count: int):
    from fvexport.encoder.fastvlm import Sampling

    return Sampling(max_new_tokens=count)


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- one conversation ----------------------------------------------------------------------------


def test_the_answer_is_the_librarys(fvexport, vlm_dir: Path, vlm, vlm_artifact: Path, pictures: list[Path]) -> None:
    options = ("--checkpoint", vlm_dir, "--max-new-tokens", 8)
    wanted = vlm.generate(pictures[:1], QUESTION, sampling=sampling(8))
    answer = fvexport("ask", pictures[0], QUESTION, *options, "--json").json
    assert answer.keys() == {"checkpoint", "encoder", "precision", "resolution", "images", "turns"}
    assert (
        answer["encoder"] == "eager" and answer["resolution"] == [256, 256] and answer["images"] == [str(pictures[0])]
    )
    (turn,) = answer["turns"]
    assert turn["token_ids"] == list(wanted.token_ids) and turn["text"] == wanted.text
    assert turn["question"] == QUESTION and turn["visual_tokens"] == 16 and turn["stop"] == wanted.stop
    assert turn["timings"]["ttft_ms"] > 0

    outcome = fvexport("ask", pictures[0], QUESTION, *options)
    assert outcome.code == 0 and outcome.err == ""
    *text, line = outcome.out.splitlines()
    assert "\n".join(text) == "".join(c for c in wanted.text if c.isprintable() or c in "\n\t")
    assert re.match(LINE, line), line
    assert re.match(LINE, line)[6] == "eager"

    wanted = vlm.generate(pictures[:1], QUESTION, sampling=sampling(8), resolution=(128, 128))
    outcome = fvexport("ask", pictures[0], QUESTION, *options, "--artifact", vlm_artifact)
    found = re.match(LINE, outcome.out.splitlines()[-1])
    assert found and found[5] == "4" and found[6] == "tiny-128 onnxruntime-cpu" and found[7] == "128x128"
    answer = fvexport("ask", pictures[0], QUESTION, *options, "--artifact", vlm_artifact, "--json").json
    assert answer["turns"][0]["token_ids"] == list(wanted.token_ids)
    answer = fvexport("ask", pictures[0], QUESTION, *options, "--res", "128", "--json").json
    assert answer["turns"][0]["token_ids"] == list(wanted.token_ids)


def test_several_images_and_turns(fvexport, vlm_dir: Path, vlm, pictures: list[Path]) -> None:
    images = pictures[:2]
    options = ("--checkpoint", vlm_dir, "--max-new-tokens", 4)
    first = vlm.generate(images, QUESTION, sampling=sampling(4))
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Why?"},
    ]
    second = vlm.generate(images, turns, sampling=sampling(4))
    answer = fvexport("ask", *images, QUESTION, "--then", "Why?", *options, "--json").json
    assert [turn["token_ids"] for turn in answer["turns"]] == [list(first.token_ids), list(second.token_ids)]
    assert [turn["visual_tokens"] for turn in answer["turns"]] == [32, 32]
    assert answer["turns"][0]["timings"]["encoder_ms"] > 0 == answer["turns"][1]["timings"]["encoder_ms"]
    outcome = fvexport("ask", *images, QUESTION, "--then", "Why?", *options)
    assert "\n> Why?\n" in outcome.out and len(re.findall(LINE, outcome.out, re.M)) == 2
    marked = fvexport("ask", *images, f"<image> or <image>? {QUESTION}", *options, "--json").json
    assert marked["turns"][0]["token_ids"] == list(
        vlm.generate(images, f"<image> or <image>? {QUESTION}", sampling=sampling(4)).token_ids
    )


def test_chat_and_stream(fvexport, vlm_dir: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--checkpoint", vlm_dir, "--max-new-tokens", 4)
    plain = fvexport("ask", pictures[0], QUESTION, "--then", "Why?", *options).out
    monkeypatch.setattr("sys.stdin", io.StringIO("\nWhy <image>?\nWhy?\n"))
    outcome = fvexport("ask", pictures[0], QUESTION, "--chat", "--stream", *options)
    assert outcome.code == 0
    # A question that cannot be asked is told, and the chat goes on.
    assert outcome.err.startswith("error: ") and "<image>" in outcome.err and outcome.err.count("\n") == 1

    def texts(out: str) -> list[str]:
        return [part.strip() for part in re.split(r"\[encoder .*\]|> Why\?", out) if part.strip()]

    assert texts(outcome.out) == texts(plain) and len(texts(plain)) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n"))
    outcome = fvexport("ask", pictures[0], "--chat", *options)
    assert outcome.code == 0 and texts(outcome.out) == texts(plain)[:1]


def test_anyres(fvexport, vlm_dir: Path, pictures: list[Path]) -> None:
    options = ("--checkpoint", vlm_dir, "--max-new-tokens", 1, "--json", "--res", 64, "--anyres")
    answer = fvexport("ask", pictures[0], QUESTION, *options, "--grid", "2x2").json
    assert answer["turns"][0]["visual_tokens"] == 5  # an overview and four tiles, one token each
    answer = fvexport("ask", pictures[0], QUESTION, *options, "--grid", "1x3", "--grid", "1x2").json
    assert answer["turns"][0]["visual_tokens"] in (3, 4)


def test_sampling_with_a_seed(fvexport, vlm_dir: Path, pictures: list[Path]) -> None:
    def ids(*args: object) -> list[int]:
        command = ("ask", pictures[0], QUESTION, "--checkpoint", vlm_dir, "--max-new-tokens", 12, "--json", "--res", 64)
        return fvexport(*command, *args).json["turns"][0]["token_ids"]

    hot = ("--temperature", 5, "--top-p", 0.95)
    assert ids(*hot, "--seed", 1) == ids(*hot, "--seed", 1)
    assert len({tuple(ids(*hot, "--seed", seed)) for seed in range(3)}) > 1
    assert ids(*hot, "--seed", 1) != ids()


def test_the_other_form_and_another_dtype(
    fvexport, golden_dir: Path, write_tokenizer, vlm_dir: Path, pictures: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "transformers"
    shutil.copytree(golden_dir / "transformers_tiny", folder)
    write_tokenizer(folder, image_token=True)
    command = ("ask", pictures[0], QUESTION, "--max-new-tokens", 2, "--json")
    answer = fvexport(*command, "--checkpoint", folder, "--res", 128).json
    assert answer["turns"][0]["visual_tokens"] == 4 and len(answer["turns"][0]["token_ids"]) == 2
    answer = fvexport(*command, "--checkpoint", vlm_dir, "--dtype", "bfloat16", "--res", 64).json
    assert answer["turns"][0]["visual_tokens"] == 1
    fvexport(*command, "--checkpoint", vlm_dir, "--dtype", "int8").one_line_error("int8", "bfloat16")


def test_profile(fvexport, vlm_dir: Path, vlm_artifact: Path, pictures: list[Path]) -> None:
    command = ("ask", pictures[0], QUESTION, "--checkpoint", vlm_dir, "--max-new-tokens", 2, "--profile")
    answer = fvexport(*command, "--artifact", vlm_artifact, "--json").json
    assert list(answer["profile"]) == ["eager", "tiny-128 onnxruntime-cpu"]
    for parts in answer["profile"].values():
        assert parts["visual_tokens"] == 4 and parts["prompt_tokens"] == answer["turns"][0]["prompt_tokens"]
        assert parts["encoder_ms"] > 0 and parts["prefill_ms"] > 0
        assert parts["ttft_p10_ms"] <= parts["ttft_ms"] <= parts["ttft_p90_ms"]
    outcome = fvexport(*command)
    assert outcome.code == 0
    for word in ("time to first token: 16 visual", "encoder, ms", "connector, ms", "prefill, ms", "TTFT, ms", "eager"):
        assert word in outcome.out


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["question is missing", "nothing was given"]),
        ([QUESTION], ["An image is missing before the question", QUESTION]),
        (["{image}"], ["question is missing", "0.png, is a file"]),
        (["x.png", "Why?", "--backend", "openvino"], ["--backend has no effect without --artifact"]),
        (["x.png", "Why?", "--out", "y.jsonl"], ["--out has no effect without --batch"]),
        (["--batch", "x.jsonl"], ["--batch needs --out"]),
        (["x.png", "Why?", "--batch", "x.jsonl", "--out", "y"], ["IMAGE... QUESTION and --batch exclude"]),
        (["--then", "Why?", "--batch", "x.jsonl", "--out", "y"], ["--then and --batch exclude"]),
        (["x.png", "Why?", "--json", "--stream"], ["--json and --stream exclude"]),
        (["x.png", "Why?", "--grid", "2"], ["'2' is no grid", "2x2"]),
    ],
)
def test_usage(fvexport, pictures: list[Path], args: list[str], parts: list[str]) -> None:
    given = [arg.format(image=pictures[0]) for arg in args]
    fvexport("ask", *given, "--checkpoint", "nowhere").one_line_error(*parts, code=2)


def test_errors_come_before_the_model_is_read(fvexport, pictures: list[Path]) -> None:
    fvexport("ask", "none.png", "Why?", "--checkpoint", "x").one_line_error("no image at none.png")
    fvexport("ask", pictures[0], "Why?", "--checkpoint", "x", "--grid", "2x2").one_line_error("--grid", "--anyres")
    fvexport("ask", pictures[0], "Why?", "--checkpoint", "x", "--temperature", -1).one_line_error("temperature")
    fvexport("ask", pictures[0], "Why?", "--checkpoint", "x", "--artifact", "y").one_line_error("no artifact at y")
    fvexport("ask", "--batch", "none.jsonl", "--out", "y", "--checkpoint", "x").one_line_error("cannot read none.jsonl")
    fvexport("ask", pictures[0], "Why?", "--checkpoint", "x", "--device", "tpu9").one_line_error("no device 'tpu9'")
    fvexport("ask", pictures[0], "x" * 5000, "--checkpoint", "nowhere").one_line_error("no such file or folder")


def test_marks_and_length(fvexport, vlm_dir: Path, pictures: list[Path]) -> None:
    command = ("--checkpoint", vlm_dir)
    fvexport("ask", pictures[0], "<image> or <image>?", *command).one_line_error("2 <image> marks", "1 image")
    long = QUESTION * 80
    fvexport("ask", pictures[0], long, *command).one_line_error("room for 512")
    answer = fvexport("ask", pictures[0], QUESTION * 30, *command, "--max-new-tokens", 4000, "--json").json
    (turn,) = answer["turns"]
    used = turn["prompt_tokens"] + turn["visual_tokens"] + len(turn["token_ids"])
    assert turn["stop"] in ("context", "end") and used <= 512
    assert turn["stop"] == "end" or used >= 511
    fvexport("ask", pictures[0], QUESTION, *command, "--res", "100").one_line_error("100x100", "64")


def test_checkpoints_that_cannot_answer(fvexport, golden_dir: Path, vlm_dir: Path, pictures: list[Path]) -> None:
    def ask(source: Path, *args: object):
        return fvexport("ask", pictures[0], QUESTION, "--max-new-tokens", 1, "--checkpoint", source, *args)

    ask(golden_dir / "llava_tiny").one_line_error("tokenizer")
    assert ask(golden_dir / "llava_tiny", "--tokenizer", vlm_dir).code == 0
    # The encoder alone has neither tokenizer nor language model: the first of what it lacks is told.
    ask(golden_dir / "timm_tiny").one_line_error("timm_tiny")


def test_a_checkpoint_without_connector(fvexport, vlm_dir: Path, pictures: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(vlm_dir, tmp_path / "vlm")
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items() if "mm_projector" not in n}
    save_file(tensors, folder / "model.safetensors")
    fvexport("ask", pictures[0], QUESTION, "--checkpoint", folder).one_line_error("has no connector")


def test_an_artifact_of_other_weights(fvexport, vlm_dir: Path, other_weights: Path, pictures: list[Path]) -> None:
    command = (
        "ask",
        pictures[0],
        QUESTION,
        "--max-new-tokens",
        1,
        "--checkpoint",
        vlm_dir,
        "--artifact",
        other_weights,
    )
    fvexport(*command).one_line_error("made from other weights", "--force")
    assert fvexport(*command, "--force").code == 0


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_with_a_bad_image_and_a_bad_question(
    fvexport, vlm_dir: Path, vlm, pictures: list[Path], tmp_path: Path
) -> None:
    for picture in pictures[:2]:
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    data = written(
        tmp_path / "data.jsonl",
        {"image": "0.png", "question": QUESTION, "id": "first"},
        {"image": "none.png", "question": QUESTION},
        {"image": ["0.png", "1.png"], "question": "Are they alike?"},
        {"image": "1.png", "question": "<image> or <image>?"},
    )
    command = ("ask", "--batch", data.name, "--out", "out.jsonl", "--checkpoint", vlm_dir, "--max-new-tokens", 4)
    outcome = fvexport(*command, "--json")
    assert outcome.code == 1
    assert outcome.json["answered"] == 2 and [one["line"] for one in outcome.json["failed"]] == [2, 4]
    lines = outcome.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "data.jsonl, line 2: no image at" in lines[0] and "line 4" in lines[1] and "2 of 4 items failed" in lines[2]
    found = rows(tmp_path / "out.jsonl")
    assert [row["line"] for row in found] == [1, 2, 3, 4]
    assert found[0]["id"] == "first" and found[0]["image"] == "0.png" and found[2]["image"] == ["0.png", "1.png"]
    wanted = vlm.generate(pictures[:2], "Are they alike?", sampling=sampling(4))
    assert found[2]["token_ids"] == list(wanted.token_ids) and found[2]["visual_tokens"] == 32
    assert "error" in found[1] and "answer" not in found[1]

    # The image is there now: it alone is asked about, and the other error stays.
    (tmp_path / "none.png").write_bytes(pictures[2].read_bytes())
    outcome = fvexport(*command)
    assert outcome.code == 1 and "1 of 4 items failed" in outcome.err and "3, 2 of them before" in outcome.out
    again = rows(tmp_path / "out.jsonl")
    assert sorted(row["line"] for row in again) == [1, 2, 3, 4]
    assert [row for row in again if row["line"] in (1, 3)] == [found[0], found[2]]

    other = (*command[:-1], 5)
    before = (tmp_path / "out.jsonl").read_bytes()
    fvexport(*other).one_line_error("other settings or weights", "--out")
    assert (tmp_path / "out.jsonl").read_bytes() == before


KILLED = """
import os, signal, sys
from pathlib import Path
from fvexport.benchmarks.tasks.model_options import ModelOptions
from fvexport.benchmarks.tasks.session import answer_batch
from fvexport.encoder.fastvlm import Sampling

def progress(task, done, total):
    if task == "answer" and done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

model = ModelOptions(checkpoint=sys.argv[1], resolution=(64, 64))
answer_batch(model, Sampling(max_new_tokens=4), Path(sys.argv[2]), Path(sys.argv[3]), progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
def test_a_batch_killed_half_way(fvexport, vlm_dir: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Nothing is lost or doubled, and what stood there is not asked again."""
    lines = [{"image": str(picture), "question": f"{QUESTION} {n}"} for n in range(2) for picture in pictures[:4]]
    data, out = written(tmp_path / "data.jsonl", *lines), tmp_path / "out.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(vlm_dir), str(data), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    before = out.read_bytes()
    assert [row["line"] for row in rows(out)] == [1, 2, 3, 4]
    out.write_bytes(before + before[:100])  # as a kill in the midst of a write leaves it
    command = ("ask", "--batch", data, "--checkpoint", vlm_dir, "--max-new-tokens", 4, "--res", 64)
    outcome = fvexport(*command, "--out", out)
    assert outcome.code == 0 and "8, 4 of them before" in outcome.out
    assert out.read_bytes().startswith(before)
    assert fvexport(*command, "--out", "whole.jsonl").code == 0
    interrupted, whole = rows(out), rows(tmp_path / "whole.jsonl")
    assert [row["line"] for row in interrupted] == list(range(1, 9))
    for ours, theirs in zip(interrupted, whole, strict=True):
        del ours["timings"], theirs["timings"]
        assert ours == theirs
    outcome = fvexport(*command, "--out", out)
    assert outcome.code == 0 and "8, 8 of them before" in outcome.out
