"""A loaded network rewritten to cost less: the same function up to rounding, for inference only.

All of it is algebra on the weights, none of it an approximation:

- A batch normalisation with fixed statistics is linear: it goes into the convolution before it.
- A 3x3 convolution of a map that was doubled by nearest neighbour sees each deep pixel several times. Summing the taps that
  fall on one deep pixel leaves 2x2 of them for each of the four phases of an output pixel, together the 4x4 kernel of a
  transposed convolution with stride 2 (the sub-pixel view of Shi et al. 2016): 4 products where there were 9, and neither
  the doubled map nor its concatenation with the skip is ever written.
- The head computes only the planes that become a probability, and four neighbouring pixels of its output at once: the 3x3
  kernels of a 2x2 block lie in one 4x4 kernel with stride 2. Processors compute 16 channels or none, so that 16 channels at
  a quarter of the pixels cost half of 4 channels at all of them.

`fold` leaves its argument as it is, so that training and choosing between probabilities never see this. Tried and left out
for too small a gain (RESULTS.md): oneDNN's fusion of ReLU6 into convolutions, whose operation torch does not document, and
leading strips of rows through the widest blocks.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoinfer.errors import SourceError
from geoinfer.model.networks import Tiny, UNetLite0, Up
from geoinfer.model.spec import PLANES, ModelSpec


def fold(network: nn.Module, spec: ModelSpec) -> nn.Module:
    """The same function rewritten to cost less, and only the planes of it that become a probability.

    Args:
        network: (N, B, S, S) -> (N, K, S, S) logits, one of `networks`; left as it is.
        spec: Its card; says how planes become a probability.

    Returns:
        (N, B, S, S) -> (N, P, S, S) logits of the planes `PLANES[spec.probability]` in that order, in eval mode.

    Raises:
        SourceError: The network has too few planes for the card's probability.
    """
    planes = PLANES[spec.probability]
    network = fold_normalisation(copy.deepcopy(network).eval())
    if isinstance(network, UNetLite0):
        network.ups = nn.ModuleList(FoldedUp(up) for up in network.ups if isinstance(up, Up))
        network.head = four_at_once(only_planes(network.head, planes))
        network.shuffle = nn.PixelShuffle(4)
    elif isinstance(network, Tiny):
        network.layers[-1] = only_planes(network.layers[-1], planes)
    return network


class FoldedUp(nn.Module):
    """`networks.Up` without the doubled map: its first convolution in two parts, one for each input."""

    def __init__(self, up: Up) -> None:
        """Fold an `Up` whose normalisations are folded."""
        super().__init__()
        first, self.second = up.layers
        conv = first.get_submodule("0")
        assert isinstance(conv, nn.Conv2d)
        c_out, c_in = conv.out_channels, conv.in_channels - up.c_skip
        self.deep = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1)
        self.skip = nn.Conv2d(up.c_skip, c_out, 3, padding=1, bias=False)
        self.deep.weight, self.deep.bias = _fixed(sum_taps(conv.weight[:, :c_in])), _fixed(_bias(conv))
        self.skip.weight = _fixed(conv.weight[:, c_in:])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, C, S, S) and (N, D, 2S, 2S) -> (N, E, 2S, 2S)."""
        x = self.deep(x).add_(self.skip(skip))  # (N, E, 2S, 2S)
        out: Tensor = self.second(functional.relu6(x, inplace=True))
        return out


def fold_normalisation(network: nn.Module) -> nn.Module:
    """The same function with each batch normalisation folded into the convolution before it, in place."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                first, second = module[i], module[i + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[i] = torch.nn.utils.fuse_conv_bn_eval(first, second)
                    module[i + 1] = nn.Identity()
    return network


def sum_taps(weight: Tensor) -> Tensor:
    """The transposed convolution (stride 2, padding 1) that equals doubling by nearest neighbour and a 3x3 convolution.

    Output row 2i sees rows 2i-1, 2i and 2i+1 of the doubled map, which are deep rows i-1, i and i: taps 0 | 1+2. Row 2i+1
    sees deep rows i, i and i+1: taps 0+1 | 2. Turned round, deep row i adds into output rows 2i-1, 2i, 2i+1 and 2i+2 by taps
    2, 1+2, 0+1 and 0: the rows of the kernel. Padding the doubled map by a zero is a zero deep row, so that borders agree.

    Args:
        weight: (C_out, C_in, 3, 3) of the convolution, padding 1.

    Returns:
        (C_in, C_out, 4, 4), the layout of `nn.ConvTranspose2d`.
    """
    taps = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # (4, 3): which taps each kernel row sums
    return torch.einsum("ar,oirs,bs->ioab", taps, weight, taps)


def four_at_once(head: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution before `PixelShuffle(2)` as a 4x4 convolution with stride 2 before `PixelShuffle(4)`.

    Args:
        head: C -> 4P channels with padding 1; channel 4p + 2r + c is row r, column c of a 2x2 block of plane p.

    Returns:
        C -> 16P channels at half the resolution; channel 16p + 4r + c is row r, column c of a 4x4 block of plane p.
    """
    planes, c_in = head.out_channels // 4, head.in_channels
    narrow = head.weight.view(planes, 2, 2, c_in, 3, 3)
    wide = narrow.new_zeros(planes, 4, 4, c_in, 4, 4)
    for row in (0, 2):
        for col in (0, 2):  # of the four pixels whose kernels lie side by side: each starts where its pixel does
            above, left = row // 2, col // 2
            wide[:, row : row + 2, col : col + 2, :, above : above + 3, left : left + 3] = narrow.detach()
    out = nn.Conv2d(c_in, 16 * planes, 4, stride=2, padding=1)
    out.weight = _fixed(wide.view(-1, c_in, 4, 4))
    out.bias = _fixed(_bias(head).view(planes, 2, 2).repeat(1, 2, 2).view(-1))
    return out


def only_planes(head: nn.Module, planes: tuple[int, ...]) -> nn.Conv2d:
    """A head, four channels a plane, that computes some of its planes.

    Raises:
        SourceError: It does not have them.
    """
    assert isinstance(head, nn.Conv2d)
    if 4 * max(planes) >= head.out_channels:
        raise SourceError(
            f"the network has {head.out_channels // 4} planes, too few for the probability in its card, which needs plane "
            f"{max(planes)} (counted from 0): the card or the weights are wrong"
        )
    channels = [4 * plane + part for plane in planes for part in range(4)]
    out = nn.Conv2d(head.in_channels, len(channels), head.kernel_size, padding=head.padding)  # type: ignore[arg-type]
    out.weight, out.bias = _fixed(head.weight[channels]), _fixed(_bias(head)[channels])
    return out


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)
