"""The eye-state classifiers of founding document 001: three architectures, four heads, one logit.

The attribute names are the keys of the document's own files, and the layers are made in the order in which those files
number the state of their optimizer. Shapes: N images, H x W pixels, h x w positions of a feature map, C channels,
t tokens, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.config.ocec import OcecShape
from warmstart.models.heads import PairLinear
from warmstart.models.margin import DEFAULTS, CosineClassifier

_LEAST_HIDDEN = 16  # of the head avgmax_mlp
_MOST_HEADS = 8  # of attention
_LAYER_SCALE = 1e-6


class SepConvBlock(nn.Module):
    """A separable 3x3 convolution, added to its input where the shapes agree: (N, C, h, w) -> (N, C', h', w')."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.pointwise(self.depthwise(x))
        return F.relu(out + x if self.is_residual else out)


class SqueezeExcite(nn.Module):
    """Hu et al. 2018: each channel times a gate in (0, 1) that all channels' means decide."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3), keepdim=True))


class InvertedResidualSE(nn.Module):
    """The block of MobileNetV2 (Sandler et al. 2018) with squeeze and excitation, and SiLU also behind the sum."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, reduction: int
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
        depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        layers += [depthwise, nn.BatchNorm2d(width), nn.SiLU()]
        if reduction:
            layers.append(SqueezeExcite(width, reduction))
        layers += [nn.Conv2d(width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.block = nn.Sequential(*layers)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return F.silu(out + x if self.is_residual else out)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022, without stochastic depth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(_LAYER_SCALE * torch.ones(channels))
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        out = self.gamma * self.pwconv2(F.gelu(self.pwconv1(out)))
        return x + out.permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """(N, C, h, w) -> (N, C', h // 2, w // 2)"""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Sequential(ChannelNorm(in_channels), nn.Conv2d(in_channels, out_channels, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021: an MLP over the tokens, and one over the channels; (N, t, C) -> the same."""

    def __init__(self, num_tokens: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(channels)
        self.token_fc1 = nn.Linear(num_tokens, 2 * num_tokens)
        self.token_fc2 = nn.Linear(2 * num_tokens, num_tokens)
        self.norm_channels = nn.LayerNorm(channels)
        self.channel_fc1 = nn.Linear(channels, 2 * channels)
        self.channel_fc2 = nn.Linear(2 * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(F.gelu(self.token_fc1(self.norm_tokens(x).transpose(1, 2))))
        x = x + self.dropout(self.token_fc2(out)).transpose(1, 2)
        out = self.dropout(F.gelu(self.channel_fc1(self.norm_channels(x))))
        return x + self.dropout(self.channel_fc2(out))


class TokenHead(nn.Module):
    """The means over the cells of a grid as tokens, mixed, averaged and classified; (N, C, h, w) -> logits."""

    def __init__(self, shape: OcecShape, num_classes: int, dropout: float) -> None:
        super().__init__()
        width, (down, across), depth = shape.channels, shape.token_mixer_grid, shape.token_mixer_layers
        self.grid = shape.token_mixer_grid
        if shape.head == "transformer":
            num_heads = next(n for n in range(min(_MOST_HEADS, width), 0, -1) if width % n == 0)
            layer = nn.TransformerEncoderLayer(
                width, num_heads, max(128, 2 * width), dropout, "gelu", batch_first=True, norm_first=True
            )
            self.mixer: nn.Module = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        else:
            self.mixer = nn.Sequential(*(MixerBlock(down * across, width, dropout) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(width)
        self.final_dropout = nn.Dropout(dropout)
        self.fc = PairLinear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        cell = (x.shape[2] // self.grid[0], x.shape[3] // self.grid[1])
        tokens = self.mixer(F.avg_pool2d(x, cell).flatten(2).transpose(1, 2))
        return self.fc(self.final_dropout(self.final_norm(tokens.mean(dim=1))))


class Ocec(nn.Module):
    """(N, 3, H, W) -> logits (N, K). For two classes the classifier has one row (heads.PairLinear).

    With a margin head, the logits are the cosines between pooled features and the rows, times its scale.
    """

    def __init__(self, shape: OcecShape, num_classes: int = 2, dropout: float = 0.3) -> None:
        super().__init__()
        self.shape = shape
        self.stem = _stem(shape.arch_variant, shape.base_channels)
        channels, blocks = shape.base_channels, []
        for number in range(shape.num_blocks):
            stride = 2 if number and number % 2 == 0 else 1
            blocks.append(_block(shape, channels, channels * stride, stride))
            channels *= stride
        self.features = nn.Sequential(*blocks)
        if not shape.margin:
            self.head = _head(shape, num_classes, dropout)
        self.apply(_initialise)
        if shape.margin:
            width = 2 * channels if shape.head == "avgmax_mlp" else channels
            self.margin_head = CosineClassifier(width, num_classes, DEFAULTS[shape.margin])

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.stem(x))
        if self.shape.margin:
            return self.margin_head(_pooled(x, self.shape.head == "avgmax_mlp"))
        if isinstance(self.head, TokenHead):
            return self.head(x)
        return self.head(_pooled(x, self.shape.head == "avgmax_mlp"))


def classifier_of(shape: OcecShape) -> str:
    """The dotted path of the last layer."""
    if shape.margin:
        return "margin_head"
    return {"avg": "head.2", "avgmax_mlp": "head.4" if shape.undropped else "head.5"}.get(
        shape.head, "head.fc"
    )


def _stem(variant: str, channels: int) -> nn.Sequential:
    if variant == "convnext":
        return nn.Sequential(nn.Conv2d(3, channels, 4, 4), ChannelNorm(channels))
    if variant == "baseline":
        convolution = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
    first, second = (nn.Conv2d(n, channels, 3, s, 1, bias=False) for n, s in ((3, 1), (channels, 2)))
    norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    return nn.Sequential(first, norms[0], nn.SiLU(), second, norms[1], nn.SiLU())


def _block(shape: OcecShape, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if shape.arch_variant == "baseline":
        return SepConvBlock(in_channels, out_channels, stride)
    if shape.arch_variant == "inverted_se":
        return InvertedResidualSE(in_channels, out_channels, stride, shape.expansion, shape.se_reduction)
    smaller = [Downsample(in_channels, out_channels)] if stride == 2 else []
    return nn.Sequential(*smaller, ConvNeXtBlock(out_channels))


def _head(shape: OcecShape, num_classes: int, dropout: float) -> nn.Module:
    if shape.head == "avg":
        width = shape.channels
        return nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(dropout), PairLinear(width, num_classes))
    if shape.head == "avgmax_mlp":
        width = 2 * shape.channels
        hidden = max(_LEAST_HIDDEN, width // 2)
        layers: list[nn.Module] = [
            nn.BatchNorm1d(width),
            nn.Dropout(dropout),
            nn.Linear(width, hidden),
            nn.ReLU(),
        ]
        layers += [] if shape.undropped else [nn.Dropout(dropout)]
        return nn.Sequential(*layers, PairLinear(hidden, num_classes))
    return TokenHead(shape, num_classes, dropout)


def _pooled(x: Tensor, with_maxima: bool) -> Tensor:
    """(N, C, h, w) -> (N, C) means, or (N, 2C) with the maxima behind them."""
    means = x.mean(dim=(2, 3))
    return torch.cat([means, x.amax(dim=(2, 3))], dim=1) if with_maxima else means


def _initialise(module: nn.Module) -> None:
    """As the document's program does it; embeddings of attention and norms keep torch's own start."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
