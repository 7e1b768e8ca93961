"""A checkpoint or an ONNX artifact in, an artifact with a TensorRT engine out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..calibration.calibration_options import CalibrationOptions
from ..core.errors import ArtifactError, ConfigError, ExportError, UnavailableError
from ..core.output_path import scratch_beside
from ..core.progress import Progress, silent
from ..encoder.checkpoint import Checkpoint, load_checkpoint
from ..encoder.config import FastViTHDConfig, get_variant
from .artifact import (
    LAYERS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PLAN_FILE,
    Artifact,
    check_writable,
    describe_files,
    writing,
)
from .clock import Clock
from .engines.api import Api, load_api
from .engines.binding import Gpu, bound_to, check_gpu, current_gpu
from .engines.build import build_plan
from .engines.engine_options import EngineOptions, Profile, Span
from .engines.summary import EngineSummary, summarize
from .engines.timing_cache import TimingCache, default_path
from .engines.trtexec_command import command_line
from .export_options import ExportOptions
from .onnx_export import export_onnx
from .parity import Images, Verdict, check_parity, photographs
from .reuse import standing


@dataclass(frozen=True)
class EngineReport:
    """What `export_trt` did.

    Attributes:
        artifact: with the engine; with a dry run, the ONNX artifact alone.
        summary: of the engine's layers; None with a dry run, or where TensorRT did not tell.
        verdict: of the engine against the eager model; None where no GPU could run it, or parity was skipped.
        reused: whether an ONNX file that stood there already was taken.
        trtexec: the same build as a command line.
        seconds: per phase, in order.
        notices: sentences that a user should read.
    """

    artifact: Artifact
    summary: EngineSummary | None
    verdict: Verdict | None
    reused: bool
    trtexec: str
    seconds: dict[str, float]
    notices: list[str]


def export_trt(
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None, out: str | os.PathLike[str] | None = None, *,
    artifact: Artifact | str | os.PathLike[str] | None = None, options: ExportOptions | None = None,
    batch: Span | None = None, resolutions: tuple[Span, Span] | None = None, engine: EngineOptions | None = None,
    variant: str | None = None, revision: str | None = None, seed: int = 0, force: bool = False, parity: bool = True,
    images: Images = None, calibration: CalibrationOptions | None = None, dry_run: bool = False,
    progress: Progress = silent,
) -> EngineReport:  # fmt: skip
    """Builds a TensorRT engine, and checks it where a GPU can run it.

    Args:
        checkpoint: as `export_onnx` takes it.
        out: the folder to write; None for the artifact's own, or one named after its content.
        artifact: an ONNX artifact to build from, instead of exporting one.
        options: of the ONNX file; 1024 x 1024, batch 1, FP16 by default.
        batch: fewest, usual and most images per call, where the file takes any number; 1 by default.
        resolutions: the same of height and of width, where the file takes any; its own by default.
        engine: of the build.
        variant, revision, seed, images, calibration: as `export_onnx` takes them.
        force: replace an engine, or another artifact, that stands at `out`.
        parity: compare the ONNX file with the eager model, and the engine where a GPU can run it; what fails is not
            written.
        dry_run: write the ONNX artifact alone; needs no TensorRT.
        progress: called as phases go on.

    Raises:
        FvexportError: one of its kinds, saying what to do; an artifact at `out` is then as it was. Where the engine
            alone failed and nothing stood at `out`, the ONNX artifact stays there.
    """
    engine = engine or EngineOptions()
    api = None if dry_run else load_api(engine.flavour)
    gpu = current_gpu()
    if api is not None:
        api.check(engine)
        check_gpu(api, gpu, runs=parity)
    if images is not None:
        photographs(images)  # that are missing or none, told before the work
    clock = Clock(progress)
    build = _Build(engine, api, gpu, batch, resolutions, parity, images, clock, progress)
    if artifact is not None:
        source = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        _prepare_plugin(api, bool(source.manifest.options.get("attention_plugin")))
        build.profile(source)
        target = Path(out) if out is not None else source.path
        _check_target(target, source, force=force or dry_run)
        return build.run(source, target, reused=True)

    options = options or ExportOptions(precision="fp16")
    if options.quantized and options.chooses_target:
        options = replace(options, target="tensorrt")
    options = options.resolved()
    config = FastViTHDConfig() if variant is None else get_variant(variant)
    options.check(config)
    _prepare_plugin(api, options.attention_plugin)
    sides = (None, None) if options.dynamic_res else (options.height, options.width)
    _fill_profile(batch, resolutions, (options.batch, *sides), (options.height, options.width), config)
    with clock("load"):
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(
                checkpoint, variant=variant, revision=revision, seed=seed, require_connector=options.projector
            )
    build.checkpoint = checkpoint
    calibration = calibration or CalibrationOptions()
    target = Path(out) if out is not None else Path(options.default_name(checkpoint.info.variant))
    existing = _standing(target, checkpoint, options, calibration, force)
    if existing is not None:
        build.notices += checkpoint.info.notices
        return build.run(existing, target, reused=True)
    with _onnx_first(target) as staged:
        report = export_onnx(
            checkpoint, staged, options=options, parity=parity, images=images, calibration=calibration,
            progress=progress,
        )  # fmt: skip
        clock.add(report.seconds)
        build.notices += report.notices
        return build.run(report.artifact, target, reused=False)


def _prepare_plugin(api: Api | None, wanted: bool) -> None:
    """Makes TensorRT know the attention plugin, where the ONNX file has its nodes.

    Raises UnavailableError where this TensorRT, or this machine, cannot.
    """
    if not wanted or api is None:
        return
    if api.flavour != "tensorrt":
        raise UnavailableError(f"the ONNX file has --attention-plugin, which needs full TensorRT; here is {api.title}")
    from ..kernels.tensorrt_plugin import register_attention

    register_attention()


@dataclass
class _Build:
    """One build: what was asked for, and what was found out on the way."""

    engine: EngineOptions
    api: Api | None
    gpu: Gpu | None
    batch: Span | None
    resolutions: tuple[Span, Span] | None
    parity: bool
    images: Images
    clock: Clock
    progress: Progress
    checkpoint: Checkpoint | None = None
    notices: list[str] = field(default_factory=list)

    def profile(self, source: Artifact) -> Profile:
        """The input sizes to build for."""
        shape, crop = source.manifest.input["shape"], source.manifest.preprocessing["crop_size"]
        own = (crop["height"], crop["width"])
        return _fill_profile(self.batch, self.resolutions, (shape[0], *shape[2:]), own, source.manifest.architecture)

    def run(self, source: Artifact, target: Path, *, reused: bool) -> EngineReport:
        """The engine added to `source`, at `target`; without TensorRT (a dry run) `source` alone."""
        profile = self.profile(source)
        flavour = self.api.flavour if self.api else self.engine.flavour or "tensorrt"
        dynamic = any(isinstance(size, str) for size in source.manifest.input["shape"])
        words = command_line(flavour, target / MODEL_FILE, target / PLAN_FILE, profile, dynamic, self.engine)
        if self.api is None:
            if target.absolute() != source.path.absolute():
                with writing(target) as folder:
                    _take(source, folder, copy=True)
                    (folder / MANIFEST_FILE).write_text(source.manifest.to_json() + "\n", encoding="utf-8")
            artifact = Artifact(target, source.manifest)
            return EngineReport(artifact, None, None, reused, words, self.clock.seconds, self.notices)
        # What is replaced, or was exported for this, is no other artifact's: its files need no copy.
        own = not reused or target.absolute() == source.path.absolute()
        check_writable(target, force=True, need_bytes=2 * sum(f["bytes"] for f in source.manifest.files.values()))
        with writing(target) as folder:
            _take(source, folder, copy=not own)
            summary, staged = self._add(folder, source, profile, self.api)
            verdict = None
            if self.parity and self.gpu is not None:
                with self.clock("parity"):
                    verdict = self._judged(staged, self.api)
            with self.clock("write"):
                assert staged.manifest.engine is not None
                staged.manifest.engine["parity"] = verdict and verdict.to_dict()
                (folder / MANIFEST_FILE).write_text(staged.manifest.to_json() + "\n", encoding="utf-8")
        if self.gpu is None:
            self.notices.append(
                "the engine was not run, for want of an NVIDIA GPU; on one, "
                f"`fvexport parity {target} --backend {flavour}` compares it with PyTorch"
            )
        artifact = Artifact(target, staged.manifest)
        return EngineReport(artifact, summary, verdict, reused, words, self.clock.seconds, self.notices)

    def _add(self, folder: Path, source: Artifact, profile: Profile, api: Api) -> tuple[EngineSummary | None, Artifact]:
        """Builds into `folder`; returns what the engine was compiled to, and the artifact with its section."""
        cache = None
        if api.flavour == "tensorrt":
            named = self.engine.timing_cache
            file = Path(named) if named else default_path(api, self.gpu.name if self.gpu else None)
            cache = TimingCache(file, named=named is not None)
        with self.clock("build"):
            built = build_plan(api, source.model_path, profile, self.engine, cache, self.progress)
        self.notices += built.notices
        record = source.manifest.quantization
        quantized = dict.fromkeys(record["quantized"], record["format"]) if record else {}
        told = summarize(built.layers, source.manifest.float_precision, quantized) if built.layers else None
        with self.clock("write"):
            (folder / PLAN_FILE).write_bytes(built.plan)
            rows = [layer.to_dict() for layer in built.layers]
            (folder / LAYERS_FILE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            section: dict[str, Any] = {
                "flavour": api.flavour,
                "version": api.version,
                # An engine of RTX is bound to no GPU, wherever it was built.
                "gpu": self.gpu.to_dict() if self.gpu and api.flavour == "tensorrt" else None,
                "capabilities": list(api.capabilities()) if api.flavour == "tensorrt-rtx" else None,
                "options": self.engine.to_dict(),
                "profile": profile.to_dict(),
                "memory": built.memory | {"plan": len(built.plan)},
                "timing_cache": built.cache,
                "layers": told and told.to_dict(),
                "parity": None,
            }
            section["bound_to"] = bound_to(section)
            manifest = replace(source.manifest, engine=section, files=describe_files(folder))
        return told, Artifact(folder, manifest)

    def _judged(self, staged: Artifact, api: Api) -> Verdict:
        verdict = check_parity(
            staged, checkpoint=self.checkpoint, images=self.images, backend=api.flavour, progress=self.progress
        )
        if not verdict.passed:
            raise ExportError(
                f"parity of the engine failed, nothing written: {verdict.reason}; --no-parity writes it anyway"
            )
        return verdict


def _fill_profile(
    batch: Span | None, resolutions: tuple[Span, Span] | None, sizes: Sequence[int | str | None],
    own: tuple[int, int], config: FastViTHDConfig,
) -> Profile:  # fmt: skip
    """The input sizes that were asked for, and the file's own where they were not.

    Args:
        batch, resolutions: as `export_trt` takes them.
        sizes: batch, height and width of the file: a number where it is fixed.
        own: height and width that it was made at.
        config: the architecture.

    Raises:
        ConfigError: the file, or the model, has no such sizes.
    """
    fixed = sizes[0] if isinstance(sizes[0], int) else 1
    spans = resolutions or ((own[0],) * 3, (own[1],) * 3)
    profile = Profile(batch or (fixed, fixed, fixed), *spans)
    asked = (("batch", profile.batch), ("height", profile.height), ("width", profile.width))
    for (name, span), size in zip(asked, sizes, strict=True):
        if isinstance(size, int) and span != (size, size, size):
            option = "--batch dynamic" if name == "batch" else "--dynamic-res"
            found = ":".join(map(str, span))
            raise ConfigError(f"the ONNX file takes {name} {size} alone, not {found}; export it with {option}")
    for height, width in zip(profile.height, profile.width, strict=True):
        config.check_resolution(height, width)
    return profile


# --- what stands at the target -----------------------------------------------------------------


def _check_target(target: Path, source: Artifact, *, force: bool) -> None:
    """Fails before the build where the result could not be written."""
    if target.absolute() != source.path.absolute():
        check_writable(target, force=force)
    else:
        _check_engine(source, force=force)


def _check_engine(standing: Artifact, *, force: bool) -> None:
    """Raises ArtifactError where the artifact to be built in holds an engine already, and `force` is off."""
    if standing.manifest.engine is not None and not force:
        raise ArtifactError(f"{standing.path} holds an engine already; replace it with --force or choose another --out")


def _standing(
    target: Path, checkpoint: Checkpoint, options: ExportOptions, calibration: CalibrationOptions, force: bool
) -> Artifact | None:
    """`reuse.standing`; raises ArtifactError also if the artifact holds an engine already and `force` is off."""
    found = standing(target, checkpoint, options, calibration, force=force)
    if found is not None:
        _check_engine(found, force=force)
    return found


@contextmanager
def _onnx_first(target: Path) -> Iterator[Path]:
    """A place beside `target` for the ONNX artifact, so that an old one at `target` stands until the engine does.

    Where the engine fails and nothing stands at `target`, the ONNX artifact goes there.
    """
    with scratch_beside(target) as scratch:
        scratch.mkdir(parents=True)
        staged = scratch / target.name
        try:
            yield staged
        except BaseException:
            if staged.exists() and not target.exists():
                with suppress(OSError):
                    staged.rename(target)
            raise


def _take(source: Artifact, folder: Path, *, copy: bool) -> None:
    """Puts the files of `source`, but an older engine and the manifest, into `folder`.

    Without `copy` they are the same files on the disk where it can: whoever writes into one writes into both.
    """
    for name in source.manifest.files:
        if name in (PLAN_FILE, LAYERS_FILE):
            continue
        if not copy:
            with suppress(OSError):
                os.link(source.path / name, folder / name)
                continue
        shutil.copy2(source.path / name, folder / name)
