"""FastViTHD, the vision encoder of FastVLM, from pixels to visual tokens.

Source: arXiv 2412.13303; parameter names are those of timm's `fastvit_mci3`, so a timm
checkpoint is this model's state dict. A model stands in one of three forms:

    train     parallel branches with BatchNorm, as trained
    released  branches merged to one convolution each; ConvFFN's BatchNorm, the layer scales
              and LayerNorm's affine remain (what FastVLM's checkpoints hold)
    fused     nothing left to fold: what is exported and served (`reparameterize` makes it)

Feature maps are (B, C, H, W); tokens are (B, N, C) with N = H * W in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..core.errors import ConfigError
from .config import MIXERS, FastViTHDConfig

Form = Literal["train", "released", "fused"]
NORM_EPS = 1e-5


class ConvShape(NamedTuple):
    """A convolution: channels, side of its kernel, stride and groups."""

    cin: int
    cout: int
    kernel: int
    stride: int = 1
    groups: int = 1


class ConvBN(nn.Module):
    """Convolution without bias, then BatchNorm."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class LayerScale(nn.Module):
    """One learned factor per channel: x * gamma."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SqueezeExcite(nn.Module):
    """Gates channels by their image-wide mean: x * sigmoid(fc2(relu(fc1(mean(x)))))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))  # (B, C, 1, 1)
        return x * gate.sigmoid()


class MobileOneBlock(nn.Module):
    """k x k, 1 x 1 and identity branches summed (arXiv 2206.04040), then squeeze-excite and GELU.

    Fused form: one convolution, `reparam_conv`.
    """

    def __init__(
        self, conv: ConvShape, *, form: Form, scale_branch: bool = True, norm_only: bool = False, se_channels: int = 0,
        act: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        cin, cout, kernel, stride, groups = conv
        if form == "train":
            self.conv_kxk = nn.ModuleList([] if norm_only else [ConvBN(*conv)])
            with_scale = scale_branch and kernel > 1 and not norm_only
            self.conv_scale = ConvBN(*conv._replace(kernel=1)) if with_scale else None
            with_identity = cin == cout and stride == 1
            self.identity = nn.BatchNorm2d(cin, eps=NORM_EPS) if with_identity else None
        else:
            self.reparam_conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups)
        self.se = SqueezeExcite(cout, se_channels) if se_channels else nn.Identity()
        self.act = nn.GELU() if act else nn.Identity()

    def kernel_conv(self) -> nn.Conv2d:
        """The k x k convolution: the one that fused form keeps, or the first branch's."""
        if hasattr(self, "reparam_conv"):
            return self.reparam_conv
        return cast("ConvBN", self.conv_kxk[0]).conv

    def branches(self) -> Iterator[nn.Module]:
        """The parallel branches of the train form."""
        yield from self.conv_kxk
        yield from (b for b in (self.conv_scale, self.identity) if b is not None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reparam_conv(x) if hasattr(self, "reparam_conv") else _sum(b(x) for b in self.branches())
        return self.act(self.se(y))


class LargeKernelConv(nn.Module):
    """Strided 7 x 7 convolution beside a 3 x 3 one (RepLKNet, arXiv 2203.06717), then GELU."""

    def __init__(self, cin: int, cout: int, kernel: int = 7, small: int = 3, stride: int = 2, *, form: Form) -> None:
        super().__init__()
        if form == "train":
            self.large_conv = ConvBN(cin, cout, kernel, stride, groups=cin)
            self.small_conv = ConvBN(cin, cout, small, stride, groups=cin)
        else:
            self.reparam_conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=cin)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "reparam_conv"):
            return self.act(self.reparam_conv(x))
        return self.act(self.large_conv(x) + self.small_conv(x))


class PatchEmbed(nn.Module):
    """Between stages: halves the resolution and widens the channels."""

    def __init__(self, cin: int, cout: int, *, form: Form) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LargeKernelConv(cin, cout, form=form), MobileOneBlock(ConvShape(cout, cout, 1), form=form)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # (B, C, H, W) -> (B, C', H/2, W/2)


class RepCPE(nn.Module):
    """Conditional position encoding: x + depthwise 7 x 7 (x). Fused form: one depthwise 7 x 7."""

    def __init__(self, dim: int, kernel: int = 7, *, form: Form) -> None:
        super().__init__()
        conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        if form == "train":
            self.pos_enc = conv
        else:
            self.reparam_conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.reparam_conv(x) if hasattr(self, "reparam_conv") else x + self.pos_enc(x)


class RepMixer(nn.Module):
    """Token mixing by convolution: x + layer_scale * (mixer(x) - norm(x)). Fused: one depthwise 3 x 3."""

    def __init__(self, dim: int, kernel: int = 3, *, form: Form) -> None:
        super().__init__()
        if form == "train":
            depthwise = ConvShape(dim, dim, kernel, groups=dim)
            self.norm = MobileOneBlock(depthwise, form=form, norm_only=True, act=False)
            self.mixer = MobileOneBlock(depthwise, form=form, act=False)
            self.layer_scale = LayerScale(dim)
        else:
            self.reparam_conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "reparam_conv"):
            return self.reparam_conv(x)
        return x + self.layer_scale(self.mixer(x) - self.norm(x))


class ConvFFN(nn.Module):
    """Depthwise 7 x 7 (with BatchNorm until fused), then C -> 4C -> C pointwise with GELU between."""

    def __init__(self, dim: int, ratio: int, kernel: int = 7, *, form: Form) -> None:
        super().__init__()
        fused = form == "fused"
        self.conv = _depthwise(dim, kernel) if fused else ConvBN(dim, dim, kernel, groups=dim)
        self.fc1 = nn.Conv2d(dim, ratio * dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(ratio * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.conv(x))))


class Attention(nn.Module):
    """Multi-head self-attention over all positions, on tokens (B, N, C).

    Fused form: head_dim^-0.5 stands in q's rows of `qkv`, which gains LayerNorm's bias.
    """

    def __init__(self, dim: int, head_dim: int, *, form: Form) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.scale = 1.0 if form == "fused" else head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=form == "fused")
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        # (B, N, 3C) -> 3 x (B, heads, N, head_dim). Heads are parted last: where channels are parted first, TensorRT
        # takes `qkv` for three products and multiplies quantized weights of theirs in float.
        q, k, v = self.qkv(x).reshape(b, n, -1, self.head_dim).transpose(1, 2).chunk(3, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class RepMixerBlock(nn.Module):
    """Block of stages 1 to 3: x = mixer(x); x = x + layer_scale * ConvFFN(x)."""

    def __init__(self, config: FastViTHDConfig, stage: int, *, form: Form) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.token_mixer = RepMixer(dim, form=form)
        self.mlp = ConvFFN(dim, config.mlp_ratio, form=form)
        self.layer_scale = _layer_scale(dim, form)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale(self.mlp(x))


class AttentionBlock(nn.Module):
    """Block of stages 4 and 5: x = x + ls1 * attention(LN(x)); x = x + ls2 * ConvFFN(x)."""

    def __init__(self, config: FastViTHDConfig, stage: int, *, form: Form) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=form != "fused")
        self.token_mixer = Attention(dim, config.head_dim, form=form)
        self.layer_scale_1 = _layer_scale(dim, form)
        self.mlp = ConvFFN(dim, config.mlp_ratio, form=form)
        self.layer_scale_2 = _layer_scale(dim, form)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
        y = self.token_mixer(self.norm(tokens)).transpose(1, 2).reshape(x.shape)
        x = x + self.layer_scale_1(y)
        return x + self.layer_scale_2(self.mlp(x))


class Stage(nn.Module):
    """Patch embedding (but in stage 1), position encoding (where attention follows), blocks."""

    def __init__(self, config: FastViTHDConfig, stage: int, *, form: Form) -> None:
        super().__init__()
        dim, attends = config.dims[stage], MIXERS[stage] == "attention"
        block = AttentionBlock if attends else RepMixerBlock
        self.downsample = PatchEmbed(config.dims[stage - 1], dim, form=form) if stage else nn.Identity()
        self.pos_emb = RepCPE(dim, form=form) if attends else nn.Identity()
        self.blocks = nn.Sequential(*(block(config, stage, form=form) for _ in range(config.depths[stage])))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pos_emb(self.downsample(x)))


class FastViTHD(nn.Module):
    """The encoder: `pixel_values` (B, 3, H, W) in [0, 1] -> `image_features` (B, H/64 * W/64, 3072).

    Args:
        config: the architecture.
        form: how much is folded already; see the module's docstring.
        uint8_input: `pixel_values` are uint8 0..255 and 1/255 is folded into the stem (fused form only).
        mean: with `uint8_input`, the mean of the checkpoint's normalization, of values in [0, 1].
    """

    def __init__(
        self, config: FastViTHDConfig | None = None, *, form: Form = "train", uint8_input: bool = False,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:  # fmt: skip
        super().__init__()
        if uint8_input and form != "fused":
            raise ConfigError("uint8 input needs the fused form; call reparameterize(model, uint8_input=True)")
        self.config = config = config or FastViTHDConfig()
        self.form: Form = form
        self.uint8_input = uint8_input
        self.levels: nn.Module = nn.Identity()
        if uint8_input:
            self.center_levels(mean)
        c = config.dims[0]
        self.stem = nn.Sequential(
            MobileOneBlock(ConvShape(3, c, 3, stride=2), form=form, scale_branch=False),
            MobileOneBlock(ConvShape(c, c, 3, stride=2, groups=c), form=form, scale_branch=False),
            MobileOneBlock(ConvShape(c, c, 1), form=form, scale_branch=False),
        )
        self.stages = nn.Sequential(*(Stage(config, stage, form=form) for stage in range(len(config.dims))))
        last = ConvShape(config.dims[-1], config.out_channels, 3, groups=config.dims[-1])
        self.final_conv = MobileOneBlock(last, form=form, se_channels=config.se_channels)
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C). H and W are multiples of 64; raises ConfigError otherwise."""
        x = self.final_conv(self.stages(self.stem(self._pixels(pixel_values))))
        return x.flatten(2).transpose(1, 2)  # (B, C, H/64, W/64) -> (B, N, C)

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution that meets the pixels."""
        return cast("MobileOneBlock", self.stem[0]).kernel_conv()

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts whose outputs layerwise parity compares, in order of running: (name, module)."""
        for i, block in enumerate(self.stem):
            yield f"stem.{i}", block
        for s, stage in enumerate(self.stages):
            for part in ("downsample", "pos_emb"):
                if not isinstance(module := getattr(stage, part), nn.Identity):
                    yield f"stages.{s}.{part}", module
            for i, block in enumerate(cast("nn.Sequential", stage.blocks)):
                yield f"stages.{s}.blocks.{i}", block
        yield "final_conv", self.final_conv

    def center_levels(self, mean: Sequence[float]) -> None:
        """Makes a model with uint8 input subtract `mean`, of values in [0, 1], from the levels / 255."""
        self.levels = (CenteredLevels(mean) if any(mean) else nn.Identity()).train(self.training)

    def _pixels(self, x: Tensor) -> Tensor:
        dtype = self.first_conv.weight.dtype
        check_pixels(x, self.config, dtype, uint8_input=self.uint8_input)
        return self.levels(x).to(dtype) if self.uint8_input else x


class CenteredLevels(nn.Module):
    """Levels 0..255 minus 255 times the mean, in float32 whatever the model computes in.

    Args:
        mean: per channel, of values in [0, 1].
    """

    offset: Tensor

    def __init__(self, mean: Sequence[float]) -> None:
        super().__init__()
        offset = 255 * torch.tensor([float(value) for value in mean], dtype=torch.float64, device="cpu")
        self.register_buffer("offset", offset.float().reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 of the same shape."""
        return x.float() - self.offset

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # In a half type the mean would be wrong by a quarter of a level.
        self.offset = self.offset.to(fn(self.offset).device)
        return self


def check_pixels(x: Tensor, config: FastViTHDConfig, dtype: torch.dtype, *, uint8_input: bool) -> None:
    """Raises ConfigError unless `pixel_values` are (B, 3, H, W) in sizes and a dtype that the model takes."""
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[0] == 0:
        raise ConfigError(f"pixel_values must be (B, 3, H, W); found {tuple(x.shape)}")
    if uint8_input != (x.dtype == torch.uint8):
        wanted = "uint8 0..255" if uint8_input else "floating point in [0, 1]"
        raise ConfigError(f"this model takes {wanted} pixel_values; found {x.dtype}")
    if not uint8_input and x.dtype != dtype:
        raise ConfigError(f"this model computes in {dtype}; found pixel_values in {x.dtype}")
    if not torch.compiler.is_compiling():  # sizes are symbols while exporting, bounded there by the exporter
        config.check_resolution(*x.shape[2:])


def _depthwise(dim: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)


def _layer_scale(dim: int, form: Form) -> nn.Module:
    return nn.Identity() if form == "fused" else LayerScale(dim)


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total
