"""From a path, a hub id or nothing at all to an encoder that is ready to run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.progress import Progress, silent
from ..config import VARIANTS, ConnectorConfig, FastViTHDConfig, get_variant, variant_name
from ..connector import Connector
from ..fastvithd import FastViTHD
from ..preprocess_config import RELEASED, PreprocessConfig
from ..seeded import seed_weights
from .assignment import assign_tensors, read_assigned
from .messages import unfit
from .preprocessing import read_preprocessing
from .settings import read_settings
from .source import locate
from .tensors import TensorStore
from .weights_files import Located

M = TypeVar("M", bound=nn.Module)

SEEDED_NOTICE = "These weights are seeded, not trained: the features mean nothing."


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What an artifact has to remember of its weights.

    Attributes:
        source: as the user gave it, or `seeded:<seed>`.
        form: `llava`, `mobileclip`, `timm`, `open_clip`, `transformers` or `seeded`.
        sha256: of the encoder's tensors as loaded; the same in every form and file layout.
        variant: a name of `VARIANTS`, or `custom`.
        revision: the hub's commit, None for a local path.
        preprocessing: how its own pipeline prepares images.
        preprocessing_source: the file and entry that say so; None for the form's published default, or seeded weights.
        resolution: the native input side in pixels, None where nothing tells it.
        trained: False for seeded weights.
        connector_sha256: as `sha256`, None without a connector.
        notice: what a person has to know of these weights, if anything.
    """

    source: str
    form: str
    sha256: str
    variant: str
    revision: str | None = None
    preprocessing: PreprocessConfig
    preprocessing_source: str | None = None
    resolution: int | None = None
    trained: bool
    connector_sha256: str | None = None
    notice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the preprocessing itself is left out, since a manifest has it for its own size."""
        own = asdict(self)
        del own["preprocessing"]
        return own

    @property
    def notices(self) -> list[str]:
        """What a person has to know of these weights, and of what was assumed about them."""
        found = [self.notice] if self.notice else []
        if self.trained and self.preprocessing_source is None:
            found.append(
                f"No file beside the weights says how images are prepared: assuming the {self.form} form's published "
                f"way ({self.preprocessing.describe()})."
            )
        return found


@dataclass
class Checkpoint:
    """An encoder (eval, float32, train or released form), its connector if any, and their origin."""

    encoder: FastViTHD
    connector: Connector | None
    info: CheckpointInfo


def load_encoder(
    source: str | os.PathLike[str] | None = None, *, variant: str | None = None, revision: str | None = None,
    seed: int = 0, progress: Progress = silent,
) -> FastViTHD:  # fmt: skip
    """The encoder of `load_checkpoint`, alone."""
    return load_checkpoint(source, variant=variant, revision=revision, seed=seed, progress=progress).encoder


def load_checkpoint(
    source: str | os.PathLike[str] | None = None, *, variant: str | None = None, revision: str | None = None,
    seed: int = 0, require_connector: bool = False, progress: Progress = silent,
) -> Checkpoint:  # fmt: skip
    """Loads any of the five public forms of FastViTHD (see `forms`), or makes seeded weights.

    Only the encoder's and connector's tensors are read, as float32, never all of the file.

    Args:
        source: a .safetensors, .pt, .pth or .bin file, a folder, or a hub id such as
            `apple/FastVLM-0.5B`; None for seeded weights. An existing path wins over a hub id.
        variant: a name of `VARIANTS`; with a source, one that the tensors must agree with.
        revision: branch, tag or commit of a hub id.
        seed: for seeded weights only.
        require_connector: refuse a checkpoint without one.
        progress: told of downloads in bytes and of reading in tensors.

    Raises:
        CheckpointError: not found, unreadable, of another model, or with unfit tensors.
        ConfigError: an unknown variant.
    """
    wanted = get_variant(variant) if variant else None
    if source is None:
        if revision is not None:
            raise unfit("checkpoint", f"revision {revision!r} was given without a source", "give a hub id too")
        return _seeded(wanted or get_variant("fastvithd"), seed)

    located = locate(source if isinstance(source, str) else Path(source), revision=revision, progress=progress)
    return load_located(located, TensorStore(located), wanted, require_connector=require_connector, progress=progress)


def load_located(
    located: Located, store: TensorStore, wanted: FastViTHDConfig | None = None, *, require_connector: bool = False,
    progress: Progress = silent,
) -> Checkpoint:  # fmt: skip
    """`load_checkpoint` of what was found already, for those who read more of the same files."""
    settings = read_settings(located.configs)
    assigned = assign_tensors(located.source, store, settings, wanted)
    if require_connector and assigned.connector is None:
        raise unfit(located.source, "has no connector", "give a FastVLM checkpoint such as apple/FastVLM-0.5B")
    try:
        found = read_preprocessing(located.configs, assigned.naming.form.name, settings.pads)
    except ConfigError as error:
        raise unfit(
            located.source, f"has preprocessing that cannot be followed: {error}", "correct that file"
        ) from None
    for_encoder, for_connector = read_assigned(located.source, store, assigned, progress)
    encoder = _filled(assigned.encoder, for_encoder)
    connector = _filled(assigned.connector.module, for_connector) if assigned.connector else None
    info = CheckpointInfo(
        source=located.source,
        form=assigned.naming.form.name,
        sha256=weights_sha256(encoder),
        variant=variant_name(encoder.config),
        revision=located.revision,
        preprocessing=found.config,
        preprocessing_source=found.source,
        resolution=settings.resolution,
        trained=True,
        connector_sha256=weights_sha256(connector) if connector is not None else None,
        notice=" ".join([*located.notices, *store.notices]) or None,
    )
    return Checkpoint(encoder, connector, info)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of a module's tensors, in order of their names.

    BatchNorm's counters are left out: they change no output.
    """
    return tensors_sha256(module.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """`weights_sha256` of a module whose tensors these are, by its own names; as in `dtype` where one is given."""
    digest = hashlib.sha256()
    for name, own in sorted(tensors.items()):
        if not name.endswith("num_batches_tracked"):
            tensor = own if dtype is None else own.to(dtype)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rounded_sha256(module: nn.Module, dtype: torch.dtype) -> str:
    """`weights_sha256` of a module whose tensors were rounded to `dtype` and are float32 again."""
    return tensors_sha256({name: tensor.to(dtype) for name, tensor in module.state_dict().items()}, torch.float32)


def _filled(module: M, tensors: Mapping[str, Tensor]) -> M:
    """A module on the meta device takes `tensors` as its own, without a copy."""
    counters = {n: torch.tensor(0) for n in module.state_dict() if n.endswith("num_batches_tracked")}
    module.load_state_dict({**tensors, **counters}, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _seeded(config: FastViTHDConfig, seed: int) -> Checkpoint:
    width = 64 if config == VARIANTS["tiny"] else ConnectorConfig.out_channels
    encoder = _grown(lambda: FastViTHD(config, form="train"), seed)
    connector = _grown(lambda: Connector(ConnectorConfig(in_channels=config.out_channels, out_channels=width)), seed)
    info = CheckpointInfo(
        source=f"seeded:{seed}",
        form="seeded",
        sha256=weights_sha256(encoder),
        variant=variant_name(config),
        preprocessing=RELEASED,
        trained=False,
        connector_sha256=weights_sha256(connector),
        notice=SEEDED_NOTICE,
    )
    return Checkpoint(encoder, connector, info)


def _grown(make: Callable[[], M], seed: int) -> M:
    """A module with seeded weights; PyTorch's own initial values and random stream are not touched."""
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    for tensor in module.state_dict().values():
        tensor.zero_()  # BatchNorm's counters are no weights
    seed_weights(module, seed)
    return module.eval().requires_grad_(False)
