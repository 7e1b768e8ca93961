"""From an artifact back to what it was made from: the checkpoint, and the module that was exported."""

from __future__ import annotations

from ..calibration.fp16 import fit_fp16
from ..core.errors import ArtifactError, CheckpointError
from ..encoder.checkpoint import Checkpoint, load_checkpoint
from ..encoder.fastvithd import FastViTHD
from ..encoder.reparameterize import reparameterize
from .artifact import Artifact
from .manifest import Manifest


def source_checkpoint(artifact: Artifact, source: str | None = None) -> Checkpoint:
    """Loads the checkpoint an artifact was made from.

    Raises:
        ArtifactError: what stands at `source` (or where the manifest says) has other weights.
        CheckpointError: nothing usable stands there.
    """
    made_from = artifact.manifest.checkpoint
    if source is None and made_from.form == "seeded":
        if artifact.manifest.variant == "custom":
            raise ArtifactError(f"{artifact.path} has seeded weights of a custom architecture; name its --checkpoint")
        checkpoint = load_checkpoint(
            None, variant=artifact.manifest.variant, seed=int(made_from.source.removeprefix("seeded:"))
        )
    else:
        try:
            checkpoint = load_checkpoint(
                source or made_from.source, revision=made_from.revision if source is None else None
            )
        except CheckpointError as error:
            if source is not None:
                raise
            raise CheckpointError(
                f"{artifact.path} was made from {made_from.source}, which cannot be loaded now ({error}); "
                "name its place with --checkpoint"
            ) from error
    wanted = made_from.sha256
    if checkpoint.info.sha256 != wanted:
        raise ArtifactError(
            f"{artifact.path} was made from other weights (sha256 {wanted[:12]}…) than {checkpoint.info.source} "
            f"({checkpoint.info.sha256[:12]}…); name the right one with --checkpoint, or export again"
        )
    if artifact.manifest.options.projector:
        if checkpoint.connector is None:
            raise ArtifactError(f"{artifact.path} ends with a connector and {checkpoint.info.source} has none")
        if checkpoint.info.connector_sha256 != made_from.connector_sha256:
            raise ArtifactError(
                f"{artifact.path} ends with another connector than that of {checkpoint.info.source}; "
                "name the right one with --checkpoint, or export again"
            )
    return checkpoint


def exported_module(manifest: Manifest, checkpoint: Checkpoint, *, uint8_input: bool) -> FastViTHD:
    """The fused encoder of a file that is not quantized, inside FP16 where the file is, in float32.

    Args:
        manifest: of the artifact.
        checkpoint: that it was made from.
        uint8_input: take levels 0..255 instead of normalized pixel values.
    """
    assert manifest.quantization is None
    normalization = manifest.preprocessor.config.normalization
    fused = reparameterize(checkpoint.encoder, uint8_input=uint8_input, normalization=normalization)
    return fit_fp16(fused, manifest.fp16) if manifest.fp16 else fused
