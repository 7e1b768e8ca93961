"""The architecture that a checkpoint's tensors speak of, by majority: some may be damaged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..config import MIXERS, FastViTHDConfig

MAX_BLOCKS = 256
"""Blocks of one stage believed; a damaged index beyond shows up as a surplus tensor."""
MAX_DIM = 1 << 14
"""Channels believed for one stage."""

_PART = re.compile(r"stages\.([0-9]{1,4})\.(?:blocks\.([0-9]{1,4})\.)?(.+)")
_SE = {"final_conv.se.fc1.weight": 0, "final_conv.se.fc1.bias": 0, "final_conv.se.fc2.weight": 1}
# Part of a stage -> the axis of its shape that holds the stage's channels.
_DIM_AXIS = {
    "mlp.fc1.weight": 1,
    "mlp.fc2.weight": 0,
    "mlp.fc2.bias": 0,
    "mlp.conv.conv.weight": 0,
    "layer_scale.gamma": 0,
    "layer_scale_1.gamma": 0,
    "layer_scale_2.gamma": 0,
    "pos_emb.pos_enc.weight": 0,
    "pos_emb.reparam_conv.weight": 0,
    "downsample.proj.1.conv_kxk.0.conv.weight": 0,
    "downsample.proj.1.reparam_conv.weight": 0,
}


def infer_config(
    shapes: Mapping[str, Sequence[int]], stated_depths: Sequence[int] | None = None
) -> FastViTHDConfig | None:
    """The config that most tensors agree on; None where no shape speaks for any.

    Args:
        shapes: canonical names and shapes, any of which may be wrong.
        stated_depths: the depths that config.json gives, believed over the names: they tell
            a block that was lost from one that never was.

    Raises:
        ConfigError: dims that no FastViTHD can have.
    """
    dims: list[Counter[int]] = [Counter() for _ in MIXERS]
    depths = [1] * len(MIXERS)
    ratios: Counter[int] = Counter()
    for stage, block, part, shape in _parts(shapes):
        depths[stage] = max(depths[stage], block + 1)
        axis = _DIM_AXIS.get(part)
        if axis is not None and axis < len(shape) and 0 < shape[axis] <= MAX_DIM:
            dims[stage][shape[axis]] += 1
        if part == "mlp.fc1.weight" and len(shape) > 1 and 0 < shape[1] <= shape[0] <= MAX_DIM * 4:
            ratios[shape[0] // shape[1]] += 1
    known = {stage: votes.most_common(1)[0][0] for stage, votes in enumerate(dims) if votes}
    if not known:
        return None
    # Stages double: one that is lost altogether follows from the nearest, so that its tensors are told as missing.
    nearest = [min((abs(stage - k), k) for k in known)[1] for stage in range(len(MIXERS))]
    chosen = tuple(max(1, int(known[near] * 2.0 ** (stage - near))) for stage, near in enumerate(nearest))
    config = FastViTHDConfig(
        depths=tuple(stated_depths or depths),
        dims=chosen,
        mlp_ratio=ratios.most_common(1)[0][0] if ratios else FastViTHDConfig.mlp_ratio,
    )
    bottlenecks = Counter(shapes[n][axis] for n, axis in _SE.items() if n in shapes and len(shapes[n]) > axis)
    hidden = bottlenecks.most_common(1)[0][0] if bottlenecks else config.se_channels
    if hidden == config.se_channels or not 0 < hidden <= MAX_DIM:
        return config
    # Half a channel more, so that rounding down gives back `hidden`.
    ratio = (hidden + 0.5) / config.out_channels
    return FastViTHDConfig(config.depths, config.dims, config.mlp_ratio, config.head_dim, ratio)


def _parts(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, int, str, Sequence[int]]]:
    """(stage, block or 0, name within it, shape) of every tensor in a stage."""
    for name, shape in shapes.items():
        match = _PART.fullmatch(name)
        if match and int(match[1]) < len(MIXERS) and int(match[2] or 0) < MAX_BLOCKS:
            yield int(match[1]), int(match[2] or 0), match[3], shape
