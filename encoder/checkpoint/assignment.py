"""Which of a checkpoint's tensors goes where: model and connector on the meta device, and names for both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.progress import Progress
from ..config import VARIANTS, FastViTHDConfig, variant_name
from ..fastvithd import FastViTHD
from .architecture import infer_config
from .check import Findings, shapes_of
from .converted import check_layout, check_names
from .forms import Naming, detect, model_form
from .guess import seems_to_be
from .messages import shown, some, unfit
from .projector import ConnectorAssignment, assign_connector
from .settings import Settings
from .tensors import TensorInfo, TensorStore


@dataclass
class Assignment:
    """A model on the meta device, and the file's tensors that fill it: their shapes and dtypes fit."""

    naming: Naming
    encoder: FastViTHD
    encoder_names: dict[str, str]  # canonical -> the file's
    connector: ConnectorAssignment | None
    seems: str


def assign_tensors(source: str, store: TensorStore, settings: Settings, wanted: FastViTHDConfig | None) -> Assignment:
    """Recognizes the form and architecture, and checks every name, shape and dtype; reads no values.

    Raises:
        CheckpointError: another model, another architecture than `wanted`, or tensors that do not fit the model.
    """
    _check_one_encoder(source, store)
    naming, names, described, config = _recognize(source, store, settings)
    _check_variant(source, config, wanted)
    form = model_form(names)
    with torch.device("meta"):
        encoder = FastViTHD(config, form=form)
    seems = f"a FastViTHD in {naming.form.title}, {form}, with depths {config.depths} and dims {config.dims}"
    if any(name.endswith(".mlp.conv.weight") for name in names):
        seems = f"a FastViTHD that was fused already, in {naming.form.title}"
    findings = Findings(store.original, _depths_hint(settings, names, described))
    findings.compare(shapes_of(encoder), described, names, naming.file_name)
    connector = _find_connector(source, store, settings, naming, config, findings)
    if unfitness := findings.error(source, seems):
        raise unfitness
    return Assignment(naming, encoder, names, connector, seems)


def _recognize(
    source: str, store: TensorStore, settings: Settings
) -> tuple[Naming, dict[str, str], dict[str, TensorInfo], FastViTHDConfig]:
    """The form, the file's names by canonical name, what is known of these tensors, and the architecture."""
    naming = detect(store.names)
    names = {c: n for n in store.names if naming and (c := naming.canonical(n)) is not None}
    described: dict[str, TensorInfo] = {}
    config = None
    if naming and any(name.startswith("stages.4.") for name in names):  # before any shard is fetched
        described = store.describe(names.values())
        check_names(source, [store.original(n) for n in names.values()], "its image encoder")
        check_layout(source, {store.original(n): info.shape for n, info in described.items()})
        try:
            config = infer_config(_shapes(names, described), settings.depths)
        except ConfigError as error:
            raise unfit(source, f"its tensors are of no FastViTHD: {error}", "give another checkpoint") from None
    if naming is None or config is None:
        originals = [store.original(name) for name in names.values() or store.names]
        check_names(source, originals, "is no FastViTHD: it")
        raise unfit(
            source,
            f"is no FastViTHD: it seems to be {seems_to_be(store.names)}, with tensors such as {some(originals)}",
            "give a FastVLM, MobileCLIP2-S3 or timm fastvit_mci3 checkpoint",
        )
    return naming, names, described, config


def _check_variant(source: str, config: FastViTHDConfig, wanted: FastViTHDConfig | None) -> None:
    """Raises CheckpointError for another architecture than the one asked for."""
    if wanted is None or config == wanted:
        return
    theirs, ours = (f"depths {c.depths} and dims {c.dims}" for c in (config, wanted))
    known = variant_name(config)
    fix = f"leave out the variant or give {known}" if known in VARIANTS else "leave out the variant"
    raise unfit(source, f"has {theirs}; the variant asked for has {ours}", fix)


def _depths_hint(settings: Settings, names: dict[str, str], described: dict[str, TensorInfo]) -> str | None:
    """What to check if the file's tensors are not the model's: depths that config.json gives, but not the tensors."""
    own = infer_config(_shapes(names, described)) if settings.depths else None
    if own is None or own.depths == settings.depths:
        return None
    return f"check the depths in config.json {settings.depths} against the tensors' {own.depths}"


def _shapes(names: dict[str, str], described: dict[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {c: described[n].shape for c, n in names.items() if n in described}


def _find_connector(
    source: str, store: TensorStore, settings: Settings, naming: Naming, config: FastViTHDConfig, findings: Findings
) -> ConnectorAssignment | None:
    """The connector's tensors, or None if there are none; adds what does not fit to `findings`."""
    try:
        connector = assign_connector(naming.form, store.names, store.describe, settings.connector, config.out_channels)
    except ConfigError as error:
        raise unfit(source, f"has no usable connector: {error}", "check mm_projector_type in config.json") from None
    if connector is None:
        return None
    if naming.form.name == "transformers" and settings.activation not in (None, "gelu"):
        problem = f"config.json says projector_hidden_act {shown(settings.activation)!r}, which is not supported"
        raise unfit(source, problem, "give a FastVLM checkpoint, whose connector has gelu")
    check_names(source, [store.original(n) for n in connector.names.values()], "its connector")
    if settings.connector and settings.connector != connector.kind:
        hint = f"check mm_projector_type in config.json {settings.connector!r} against the tensors' {connector.kind}"
        findings.hint = findings.hint or hint
    findings.compare(shapes_of(connector.module), connector.found, connector.names, connector.name_of)
    return connector


def _check_one_encoder(source: str, store: TensorStore) -> None:
    """Raises CheckpointError for several encoders in one file, or one behind an unknown prefix."""
    found = store.unwrapped
    if found.twins:
        places = some([repr(shown(place)) for place in (found.prefix, *found.twins)])
        problem = f"holds several FastViTHD encoders, with names that begin with {places}"
        raise unfit(source, problem, "save the tensors of the wanted one alone")
    if found.unknown:
        problem = f"its names are FastViTHD's behind the prefix {shown(found.prefix)!r}, which no known form has"
        raise unfit(source, problem, "save the tensors without that prefix")
    if found.repeated:
        problem = f"two of its tensors have one name without the prefix {shown(found.prefix)!r}: {some(found.repeated)}"
        raise unfit(source, problem, "save the tensors of the wanted one alone")


def read_assigned(
    source: str, store: TensorStore, assigned: Assignment, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reads every assigned tensor: (the encoder's, the connector's) by canonical name, float32.

    Raises:
        CheckpointError: NaN or infinity, all such tensors in one error.
    """
    encoder: dict[str, Tensor] = {}
    connector: dict[str, Tensor] = {}
    targets = {name: (encoder, canonical) for canonical, name in assigned.encoder_names.items()}
    if assigned.connector:
        targets |= {name: (connector, canonical) for canonical, name in assigned.connector.names.items()}
    findings = Findings(store.original)
    for done, (name, tensor) in enumerate(store.read(targets), start=1):
        findings.examine(name, tensor)
        holder, canonical = targets[name]
        holder[canonical] = tensor
        progress("reading weights", done, len(targets))
    if error := findings.error(source, assigned.seems):
        raise error
    return encoder, connector
