"""The network that ships with geoinfer: a U-Net on an EfficientNet-Lite0 encoder, in one file.

The encoder (Tan & Le 2019, "EfficientNet"; the Lite variant drops squeeze-and-excite and swish) has no operation that
looks at the whole chip: every output pixel depends on a bounded neighbourhood, which is what lets the lattice give one
answer whatever the tiling. The decoder predicts at stride 2 and a pixel shuffle (Shi et al. 2016) brings the logits to full
resolution, so the most expensive stage of a U-Net, convolutions at stride 1, is left out.

Knows about tensors only; files, devices and probabilities are elsewhere (`registry`, `predictor`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

STRIDE = 32
"""Chips and cores are multiples of this: the encoder halves the resolution five times."""

# (kernel, stride, expansion, channels out, repeats) of each stage, EfficientNet-B0 = Lite0
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_SKIPS = (0, 2, 4, 10)
"""Blocks whose output feeds the decoder: strides 2, 4, 8 and 16 (16, 24, 40 and 112 channels)."""


class _Depthwise(nn.Conv2d):
    """A depthwise convolution that trains in float32 on CPUs.

    oneDNN's bfloat16 backward pass of strided and of 5x5 depthwise convolutions is 3 to 7 times slower than its float32
    one (measured: 127 against 17 ms for 144 channels of 64x64), and they are a third of a training step. Inference is not
    touched.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and (self.stride != (1, 1) or self.kernel_size != (3, 3)):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


def _conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        (nn.Conv2d if groups == 1 else _Depthwise)(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.01),
    ]
    if act:
        layers.append(nn.ReLU6(inplace=True))
    return nn.Sequential(*layers)


class _InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, project 1x1 (Sandler et al. 2018)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_norm(c_in, wide, 1))
        layers += [_conv_norm(wide, wide, kernel, stride, groups=wide), _conv_norm(wide, c_out, 1, act=False)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class Up(nn.Module):
    """Double the resolution, join the skip, two 3x3 convolutions."""

    def __init__(self, c_in: int, c_skip: int, c_out: int) -> None:
        super().__init__()
        self.c_skip = c_skip
        self.layers = nn.Sequential(_conv_norm(c_in + c_skip, c_out, 3), _conv_norm(c_out, c_out, 3))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, C, S, S) and (N, D, 2S, 2S) -> (N, E, 2S, 2S)."""
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        out: Tensor = self.layers(torch.cat((x, skip), dim=1))
        return out


class UNetLite0(nn.Module):
    """(N, B, S, S) normalised bands -> (N, K, S, S) logits; S a multiple of `STRIDE`.

    Args:
        bands: Channels of the input.
        outputs: K, logit planes of the output; what they mean is the card's business.
        decoder: Channels of the decoder at strides 16, 8, 4 and 2.
        width: Scale of the encoder's channels; 1.0 is Lite0 itself and the only width with ImageNet weights.
    """

    def __init__(
        self, bands: int = 3, outputs: int = 1, decoder: tuple[int, int, int, int] = (128, 64, 48, 32), width: float = 1.0
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(4, round(channels * width / 4) * 4)

        c = scaled(32)
        self.stem = _conv_norm(bands, c, 3, stride=2)
        blocks: list[nn.Module] = []
        widths: list[int] = []
        for kernel, stride, expansion, channels, repeats in _STAGES:
            for i in range(repeats):
                blocks.append(_InvertedResidual(c, scaled(channels), kernel, stride if i == 0 else 1, expansion))
                c = scaled(channels)
                widths.append(c)
        self.blocks = nn.ModuleList(blocks)
        ups: list[nn.Module] = []
        for c_out, skip in zip(decoder, reversed(_SKIPS), strict=True):
            ups.append(Up(c, widths[skip], c_out))
            c = c_out
        self.ups = nn.ModuleList(ups)
        self.head = nn.Conv2d(c, 4 * outputs, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, S, S) normalised bands -> (N, K, S, S) logits."""
        x = self.stem(x)  # (N, 32, S/2, S/2)
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in _SKIPS:
                skips.append(x)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)  # (N, 32, S/2, S/2) after the last
        logits: Tensor = self.shuffle(self.head(x))  # (N, K, S, S)
        return logits


def load_imagenet_encoder(network: UNetLite0, weights: Mapping[str, Tensor]) -> None:
    """Copy ImageNet weights of EfficientNet-Lite0 into the encoder, by order and shape.

    Args:
        weights: State of a Lite0 classifier in the usual order (stem, 16 blocks, head, classifier); names are ignored.

    Raises:
        ValueError: The tensors do not line up with the encoder.
    """
    target = {k: v for k, v in network.state_dict().items() if k.startswith(("stem.", "blocks."))}
    source = list(weights.values())[: len(target)]
    for (name, have), new in zip(target.items(), source, strict=True):
        if have.shape != new.shape:
            raise ValueError(f"encoder tensor {name} has shape {tuple(have.shape)}, the weights have {tuple(new.shape)}")
        have.copy_(new)


class Tiny(nn.Module):
    """Three convolutions at stride 2 that see 19 px around a pixel: for tests and for reading, not for maps.

    (N, B, S, S) normalised bands -> (N, K, S, S) logits; S even.
    """

    def __init__(self, bands: int = 3, outputs: int = 3, channels: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv_norm(bands, channels, 5, stride=2),
            *_conv_norm(channels, channels, 5),
            nn.Conv2d(channels, 4 * outputs, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, S, S) normalised bands -> (N, K, S, S) logits."""
        return nn.functional.pixel_shuffle(self.layers(x), 2)  # (N, K, S, S)


NETWORKS: dict[str, type[nn.Module]] = {"unet-lite0": UNetLite0, "tiny": Tiny}
"""Architectures that a card may name."""


def build_network(architecture: str, **arguments: object) -> nn.Module:
    """A network by its name in the card, with random weights.

    Raises:
        KeyError: No network of that name; `NETWORKS` lists them.
    """
    return NETWORKS[architecture](**arguments)
