"""A checkpoint or an ONNX artifact in, an artifact with a TensorRT engine out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace as replace_fields

from ..calibration.calibration_options import CalibrationOptions
from ..core.errors import ArtifactError, ExportError, UnavailableError
from ..core.output_path import os_errors, put_folder, scratch_beside
from ..core.progress import Progress, silent
from ..core.records import parse
from ..core.temporary import check_temporary_folder
from ..core.verdict.sections import VerdictSection
from ..encoder.checkpoint import Checkpoint
from ..encoder.weight_options import WeightOptions
from .artifact import (
    LAYERS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PLAN_FILE,
    Artifact,
    check_writable,
    describe_files,
    is_artifact,
    writing,
)
from .clock import Clock
from .engines.api import Api, load_api
from .engines.binding import bound_to, check_gpu, current_gpu
from .engines.build import build_plan
from .engines.engine_options import EngineOptions, Profile
from .engines.engine_section import EngineSection, Gpu
from .engines.summary import EngineSummary, summarize
from .engines.timing_cache import TimingCache, default_path
from .engines.trtexec_command import command_line
from .export_options import ExportOptions
from .onnx_export import run_export
from .parity import Verdict, check_parity, photographs
from .requests import EngineKeywords, EngineRequest, OutputOptions, engine_request
from .reuse import standing

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
    engine: EngineOptions | None = None, progress: Progress = silent, **keywords: Unpack[EngineKeywords],
) -> EngineReport:  # fmt: skip
    """Builds a TensorRT engine, and checks it where a GPU can run it.

    Args:
        checkpoint: as `export_onnx` takes it.
        out: the folder to write; None for the artifact's own, or one named after its content.
        artifact: an ONNX artifact to build from, instead of exporting one.
        options: of the ONNX file; 1024 x 1024, batch 1, FP16 by default.
        engine: of the build.
        progress: called as phases go on.
        keywords: of the following
            batch: fewest, usual and most images per call, where the file takes any number; 1 by default.
            resolutions: the same of height and of width, where the file takes any; its own by default.
            variant, revision, seed, images, calibration: as `export_onnx` takes them.
            force: replace an engine, or another artifact, that exists at `out`.
            parity: compare the ONNX file with the eager model, and the engine where a GPU can run it, unless False;
                what fails is not written.
            dry_run: write the ONNX artifact alone; needs no TensorRT.

    Raises:
        FvexportError: one of its kinds, saying what to do; an artifact at `out` is then as it was. Where the engine
            alone failed and nothing stood at `out`, the ONNX artifact stays there.
    """
    request = engine_request(
        checkpoint, out, options or ExportOptions(precision="fp16"), artifact, engine or EngineOptions(), keywords
    )
    return run_engine(request, progress)


def run_engine(request: EngineRequest, progress: Progress = silent) -> EngineReport:
    """Does what `export_trt` does, for a request."""
    checks = request.export.checks
    api = None if request.dry_run else load_api(request.engine.flavour)
    gpu = current_gpu()
    if api is not None:
        api.check(request.engine)
        check_gpu(api, gpu, runs=checks.parity)
    if checks.images is not None:
        photographs(checks.images)  # raises for missing ones before the work
    build = _Build(request=request, api=api, gpu=gpu, clock=Clock(progress), progress=progress)
    return _from_checkpoint(build) if request.artifact is None else _from_artifact(build, request.artifact)


def _from_artifact(build: _Build, artifact: Artifact | str | os.PathLike[str]) -> EngineReport:
    """The engine of an ONNX artifact."""
    source = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
    _prepare_plugin(build.api, source.manifest.options.attention_plugin)
    build.profile(source)
    output = build.request.export.output
    target = Path(output.out) if output.out is not None else source.path
    _check_target(target, source, force=output.force, dry_run=build.request.dry_run)
    return build.run(source, target, reused=True)


def _from_checkpoint(build: _Build) -> EngineReport:
    """The engine of an ONNX artifact that is exported first, or was exported before."""
    check_temporary_folder()  # if an ONNX file has to be exported
    export = build.request.export
    options = export.graph
    if options.quantized and options.chooses_target:
        options = replace(options, target="tensorrt")
    options = options.resolved()
    config = export.weights.architecture
    options.check(config)
    _prepare_plugin(build.api, options.attention_plugin)
    sides = (None, None) if options.dynamic_res else (options.height, options.width)
    build.request.profile.fill((options.batch, *sides), (options.height, options.width), config)
    with build.clock("load"):
        build.checkpoint = checkpoint = export.weights.load(require_connector=options.projector)
    target = export.output.folder(options, checkpoint.info.variant)
    existing = _standing(target, checkpoint, options, export.calibration, export.output.force)
    if existing is not None:
        build.notices += checkpoint.info.notices
        return build.run(existing, target, reused=True)
    with _onnx_first(target) as staged:
        loaded, output = WeightOptions(checkpoint=checkpoint), OutputOptions(out=staged)
        report = run_export(replace(export, weights=loaded, graph=options, output=output), build.progress)
        build.clock.add(report.seconds)
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


@dataclass(kw_only=True)
class _Build:
    """One build: what was asked for, and what was found out on the way."""

    request: EngineRequest
    api: Api | None
    gpu: Gpu | None
    clock: Clock
    progress: Progress
    checkpoint: Checkpoint | None = None
    notices: list[str] = field(default_factory=list)

    def profile(self, source: Artifact) -> Profile:
        """The input sizes to build for."""
        shape, prepared = source.manifest.input.shape, source.manifest.preprocessor
        own = (prepared.height, prepared.width)
        return self.request.profile.fill((shape[0], *shape[2:]), own, source.manifest.architecture)

    def run(self, source: Artifact, target: Path, *, reused: bool) -> EngineReport:
        """The engine added to `source`, at `target`; without TensorRT (a dry run) `source` alone."""
        profile = self.profile(source)
        flavour = self.api.flavour if self.api else self.request.engine.flavour or "tensorrt"
        dynamic = any(isinstance(size, str) for size in source.manifest.input.shape)
        words = command_line(flavour, target / MODEL_FILE, target / PLAN_FILE, profile, dynamic, self.request.engine)
        in_place = target.absolute() == source.path.absolute()
        force = in_place or self.request.export.output.force
        if self.api is None:
            if not in_place:
                with writing(target, force=force) as folder:
                    with source.one_version():
                        _take(source, folder, copy=True)
                    (folder / MANIFEST_FILE).write_text(source.manifest.to_json() + "\n", encoding="utf-8")
            artifact = Artifact(target, source.manifest)
            return EngineReport(artifact, None, None, reused, words, self.clock.seconds, self.notices)
        # What is replaced, or was exported for this, is no other artifact's: its files need no copy.
        own = not reused or in_place
        check_writable(target, force=force, need_bytes=2 * sum(f.bytes for f in source.manifest.files.values()))
        with writing(target, force=force) as folder:
            with source.one_version():
                _take(source, folder, copy=not own)
                engine = self._add(folder, source, profile, self.api)
            files, verdict = describe_files(folder), None
            manifest = source.manifest.replace(engine=engine, files=files)
            if self.request.export.checks.parity and self.gpu is not None:
                with self.clock("parity"):
                    verdict = self._judged(Artifact(folder, manifest), self.api)
                section = parse(verdict.to_dict(), VerdictSection)
                manifest = manifest.replace(engine=replace_fields(engine, parity=section))
            with self.clock("write"):
                (folder / MANIFEST_FILE).write_text(manifest.to_json() + "\n", encoding="utf-8")
        if self.gpu is None:
            self.notices.append(
                "the engine was not run, for want of an NVIDIA GPU; on one, "
                f"`fvexport parity {target} --backend {flavour}` compares it with PyTorch"
            )
        artifact = Artifact(target, manifest)
        return EngineReport(artifact, engine.layers, verdict, reused, words, self.clock.seconds, self.notices)

    def _add(self, folder: Path, source: Artifact, profile: Profile, api: Api) -> EngineSection:
        """Builds into `folder`; returns the engine's section of the manifest, without a verdict."""
        cache = None
        if api.flavour == "tensorrt":
            named = self.request.engine.timing_cache
            file = Path(named) if named else default_path(api, self.gpu.name if self.gpu else None)
            cache = TimingCache(file, named=named is not None)
        with self.clock("build"):
            built = build_plan(api, source.model_path, profile, self.request.engine, cache, self.progress)
        self.notices += built.notices
        record = source.manifest.quantization
        quantized = dict.fromkeys(record.quantized, record.format) if record else {}
        layers = summarize(built.layers, source.manifest.float_precision, quantized) if built.layers else None
        with self.clock("write"):
            (folder / PLAN_FILE).write_bytes(built.plan)
            rows = [layer.to_dict() for layer in built.layers]
            (folder / LAYERS_FILE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        engine = EngineSection(
            flavour=api.flavour,
            version=api.version,
            # An engine of RTX is bound to no GPU, wherever it was built.
            gpu=self.gpu if api.flavour == "tensorrt" else None,
            capabilities=api.capabilities() if api.flavour == "tensorrt-rtx" else None,
            options=self.request.engine,
            profile=profile,
            memory=built.memory | {"plan": len(built.plan)},
            timing_cache=built.cache,
            layers=layers,
            parity=None,
            bound_to="",
        )
        return replace_fields(engine, bound_to=bound_to(engine))

    def _judged(self, staged: Artifact, api: Api) -> Verdict:
        verdict = check_parity(
            staged,
            checkpoint=self.checkpoint,
            images=self.request.export.checks.images,
            backend=api.flavour,
            progress=self.progress,
        )
        if not verdict.passed:
            raise ExportError(
                f"parity of the engine failed, nothing written: {verdict.reason}; --no-parity writes it anyway"
            )
        return verdict


# --- what stands at the target -----------------------------------------------------------------


def _check_target(target: Path, source: Artifact, *, force: bool, dry_run: bool) -> None:
    """Fails before the build where the result could not be written."""
    if target.absolute() != source.path.absolute():
        check_writable(target, force=force)
    elif not dry_run:
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
    with ExitStack() as held:
        with os_errors(target):
            staged = held.enter_context(scratch_beside(target))
        try:
            yield staged
        except BaseException:
            if staged.exists():
                with suppress(OSError, ArtifactError):
                    put_folder(staged, target, force=False, ours=is_artifact)
            raise


def _take(source: Artifact, folder: Path, *, copy: bool) -> None:
    """Puts the files of `source`, but an older engine and the manifest, into `folder`.

    Without `copy` they are the same files on the disk where it can: whoever writes into one writes into both.
    """
    for name in source.manifest.files:
        if name in (PLAN_FILE, LAYERS_FILE):
            continue
        file = (source.path / name).resolve()  # of a link in a Hugging Face cache, what it leads to
        if not copy:
            with suppress(OSError):
                os.link(file, folder / name)
                continue
        shutil.copy2(file, folder / name)
