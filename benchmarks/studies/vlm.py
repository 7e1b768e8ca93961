"""FastVLM whole, at real dimensions: time to first token by part, peak memory, and whether INT8 answers alike.

    python -m fvexport.benchmarks.studies.vlm --res 1024 --threads 2 --artifacts build/vlm

The eager encoder in its released form against our FP32 and INT8 files of the same weights, in front of one language
model, in one run. Weights are seeded: times and memory do not depend on their values; that answers agree does, and is
harder than with trained weights, whose likeliest word stands out.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ...core.verdict.figures import compare
from ...encoder.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from ...encoder.config import ConnectorConfig, get_variant
from ...encoder.connector import Connector
from ...encoder.fastvlm import EagerTower, FastVLM, Sampling, VisionTower
from ...encoder.fastvlm.prompt import IMAGE_TOKEN_INDEX
from ...encoder.fastvlm.splice import splice
from ...encoder.image import load_image, sample_images
from ...encoder.preprocess import Preprocessor
from ...encoder.preprocess_config import RELEASED
from ...encoder.qwen2 import prefill
from ...encoder.reparameterize import merge_branches
from ...encoder.seeded import seed_weights
from ..peers.photos import TEST, Photographs
from ..sweep.process_memory import peak_mb, reset_peak
from ..tasks.ttft import LanguageModelName, Vision, measure_ttft_paired, seeded_language_model
from .results import environment, out_option, write_json

TOWERS = ("eager", "fp32", "int8")


@dataclass(frozen=True)
class Setting:
    """One measurement, as plain values that another process can be given.

    Attributes:
        artifacts: where both files lie, or are written to.
        language_model: a name of `ttft.DIMENSIONS`.
        res: side of the square in pixels.
        threads: for each runtime.
        prompt_tokens: of the text around an image.
        answer_tokens: of the run whose memory is looked at.
        samples: pictures that INT8 is calibrated on.
        variant: of the encoder.
    """

    artifacts: Path
    language_model: LanguageModelName = "qwen2-0.5b"
    res: int = 1024
    threads: int = 2
    prompt_tokens: int = 32
    answer_tokens: int = 16
    samples: int = 8
    variant: str = "fastvithd"

    @property
    def prompt(self) -> list[int]:
        """Token ids with the image's mark after a few: the question, as far as times go."""
        ids = [index % 97 for index in range(self.prompt_tokens)]
        return [*ids[:4], IMAGE_TOKEN_INDEX, *ids[4:]]

    def path(self, tower: str) -> Path:
        """Where a tower's artifact lies."""
        return self.artifacts / f"{self.variant}-{self.res}-{tower}"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Seeded weights, in the form that released checkpoints have."""
        checkpoint = load_checkpoint(None, variant=self.variant)
        checkpoint.encoder = merge_branches(checkpoint.encoder)
        return checkpoint


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--res", default=1024, show_default=True, help="Side of the square in pixels.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Of the paired timing; 0 leaves it out.")
@click.option("--crops", default=50, show_default=True, help="Crops of photographs to compare answers on; 0 for none.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory, a process for each.")
@click.option("--language-model", default="qwen2-0.5b", show_default=True)
@click.option("--prompt-tokens", default=32, show_default=True)
@click.option("--samples", default=8, show_default=True, help="Pictures to calibrate INT8 on.")
@click.option("--variant", default="fastvithd", show_default=True)
@click.option("--artifacts", type=click.Path(path_type=Path), help="Keep the files here; made where they are missing.")
@out_option
def main(rounds: int, crops: int, memory: bool, artifacts: Path | None, out: Path | None, **given: Any) -> None:
    """Prints tables, and writes them to `--out`."""
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(artifacts=artifacts or Path(scratch), **given)
        make_artifacts(setting)
        result: dict[str, Any] = {"environment": environment(), "setting": asdict(setting) | {"artifacts": None}}
        if memory:
            result["memory"] = [_told(peak_memory(setting, tower)) for tower in TOWERS]
        if rounds:
            result["ttft"] = [_told(row) for row in time_to_first_token(setting, rounds)]
        if crops:
            result["agreement"] = [_told(row) for row in agreement(setting, crops)]
    if out is not None:
        write_json(out, result)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    click.echo("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return row


def make_artifacts(setting: Setting) -> None:
    """FP32 and INT8 files of the seeded encoder, INT8 calibrated on one half of the photographs; kept ones stay."""
    # Imported here, because `peak_memory` counts what the other process imports.
    from ...calibration.calibration_options import CalibrationOptions
    from ...export.export_options import ExportOptions
    from ...export.onnx_export import export_onnx

    for tower in TOWERS[1:]:
        if setting.path(tower).exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            photographs = Photographs.write(Path(folder) / "photographs.txt", setting.samples, setting.res)
            options = ExportOptions(
                height=setting.res, width=setting.res, precision=tower,  # type: ignore[arg-type]
                target="onnxruntime-cpu" if tower == "int8" else None,
            )  # fmt: skip
            calibration = CalibrationOptions(calib=photographs.listing, samples=setting.samples)
            export_onnx(setting.checkpoint, setting.path(tower), options=options, calibration=calibration, parity=False)


def make_tower(setting: Setting, name: str) -> VisionTower:
    """One of `TOWERS`."""
    from ...export.runtime import ArtifactTower  # see `make_artifacts`

    if name == "eager":
        return EagerTower(setting.checkpoint.encoder)
    return ArtifactTower(setting.path(name), None, threads=setting.threads)


def make_connector(setting: Setting, language_model: Any) -> Connector:
    """Seeded, to the language model's width."""
    width = int(language_model.config.hidden_size)
    connector = Connector(ConnectorConfig(in_channels=get_variant(setting.variant).out_channels, out_channels=width))
    seed_weights(connector)
    return connector.requires_grad_(False)


def make_fastvlm(setting: Setting, tower: str) -> tuple[FastVLM, VisionTower]:
    """A whole model without tokenizer, and what encodes for it; an artifact's has no eager encoder beside it."""
    torch.set_num_threads(setting.threads)
    language_model = seeded_language_model(setting.language_model)
    made = make_tower(setting, tower)
    info = CheckpointInfo(
        source="seeded:0",
        form="seeded",
        sha256="",
        variant=setting.variant,
        preprocessing=RELEASED,
        trained=False,
    )
    vlm = FastVLM(
        info=info,
        architecture=get_variant(setting.variant),
        tower=made if isinstance(made, EagerTower) else None,
        connector=make_connector(setting, language_model),
        language_model=language_model,
        tokenizer=None,
        resolution=(setting.res, setting.res),
        tiling=None,
        image_newline=None,
        stop_ids=frozenset(),
        context_length=int(language_model.config.max_position_embeddings),
    )
    return vlm, made


def peak_memory(setting: Setting, tower: str) -> dict[str, Any]:
    """One photograph and an answer from beginning to end, in a process of its own: its times and peak memory.

    The peak is of the answer, weights included; that of making seeded weights is no user's.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_answer_alone, replace(setting), tower).result()  # a copy, without the weights made so far


def _answer_alone(setting: Setting, tower: str) -> dict[str, Any]:
    vlm, made = make_fastvlm(setting, tower)
    gc.collect()
    resets = reset_peak()
    images = vlm.encode_images([sample_images()["astronaut"]], tower=made)
    answer = vlm.answer(images, setting.prompt, sampling=Sampling(setting.answer_tokens))
    peak = peak_mb() if resets else None
    return {
        "tower": tower, "peak_mib": peak and peak * 1e6 / 2**20, "visual_tokens": answer.visual_tokens,
        "tokens": len(answer.token_ids), "first_ttft_ms": answer.timings.ttft_ms,
        "tokens_per_s": answer.timings.tokens_per_s,
    }  # fmt: skip


def time_to_first_token(setting: Setting, rounds: int) -> list[dict[str, Any]]:
    """The three side by side, by part, with the ratio of the eager time to each."""
    torch.set_num_threads(setting.threads)
    language_model = seeded_language_model(setting.language_model)
    connector = make_connector(setting, language_model)
    towers = {name: Vision(make_tower(setting, name).encode, connector) for name in TOWERS}
    pixels = Preprocessor(setting.res, setting.res).pixels(sample_images()["astronaut"])
    timed = measure_ttft_paired(
        towers, language_model, torch.from_numpy(pixels[None]), prompt_tokens=setting.prompt_tokens, rounds=rounds
    )
    eager = timed["eager"]
    return [
        {
            "tower": name, **row.to_dict(), "encoder_speedup": eager.encoder_ms / row.encoder_ms,
            "ttft_speedup": eager.ttft_ms / row.ttft_ms,
        }
        for name, row in timed.items()
    ]  # fmt: skip


def agreement(setting: Setting, crops: int) -> list[dict[str, Any]]:
    """How often the first token is the eager encoder's, over crops of photographs that INT8 was not calibrated on.

    `first_tokens` says how many different ones the eager encoder leads to: with few, agreement would prove little.
    """
    vlm, eager = make_fastvlm(setting, "eager")
    others = {name: make_tower(setting, name) for name in TOWERS[1:]}
    same, answers = dict.fromkeys(others, 0), set()
    errors: dict[str, list[float]] = {name: [] for name in others}

    def first(tokens: torch.Tensor) -> int:
        logits, _ = prefill(vlm.language_model, splice(vlm.language_model, setting.prompt, [vlm.connector(tokens)[0]]))
        return int(logits.argmax())

    with torch.inference_mode():
        for pixels in photograph_crops(crops, setting.res):
            wanted = eager.encode(torch.from_numpy(pixels[None]))
            answer = first(wanted)
            answers.add(answer)
            for name, tower in others.items():
                found = tower.encode(torch.from_numpy(pixels[None]))
                errors[name].append(compare(wanted.numpy(), found.numpy()).rel_l2)
                same[name] += first(found) == answer
    return [
        {
            "tower": name, "crops": crops, "first_tokens": len(answers), "same_first_token": same[name],
            "mean_rel_l2_percent": 100 * sum(e) / len(e),
        }
        for name, e in errors.items()
    ]  # fmt: skip


def photograph_crops(count: int, res: int, seed: int = 0) -> Iterator[np.ndarray[Any, Any]]:
    """Square crops of the photographs that calibration leaves out, uint8 (3, res, res), equal for equal."""
    rng, paths, preprocessor = np.random.default_rng(seed), sample_images(), Preprocessor(res, res)
    for index in range(count):
        image = load_image(paths[TEST[index % len(TEST)]])
        side = int(min(image.size) * rng.uniform(0.4, 0.9))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        yield preprocessor.pixels(image.crop((left, top, left + side, top + side)))


if __name__ == "__main__":
    main()
