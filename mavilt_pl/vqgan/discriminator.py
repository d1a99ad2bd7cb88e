"""PatchGAN discriminator (pix2pix, arXiv 1611.07004), as in taming-transformers.

Shape legend: B batch, H W height and width in pixels, h w patches.
"""

from __future__ import annotations

from torch import Tensor, nn

from mavilt_pl.ranges import Size


class Discriminator(nn.Module):
    """Pixels [B,1,H,W] → one logit per patch [B,1,h,w]; high means real.

    It has group norm instead of batch norm: statistics of a batch differ between ranks and between
    its real and its reconstructed half.

    Args:
        channels: width of the first layer; it doubles with each layer, up to 8 times.
        layers: convolutions after the first; all but the last halve the resolution.
    """

    def __init__(self, channels: Size = 64, layers: Size = 3):
        super().__init__()
        net: list[nn.Module] = [
            nn.Conv2d(1, channels, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
        ]
        # Widths, strides and slopes are those of pix2pix with a receptive field of 70 pixels
        # (layers 3).
        in_width = channels
        for number in range(1, layers + 1):
            width = channels * min(2**number, 8)
            stride = 2 if number < layers else 1
            net += [
                # No bias: the norm after it subtracts any constant.
                nn.Conv2d(in_width, width, 4, stride, 1, bias=False),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2, True),
            ]
            in_width = width
        net.append(nn.Conv2d(in_width, 1, 4, 1, 1))
        self.net = nn.Sequential(*net)
        # N(0, 0.02) as in pix2pix.
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels [B,1,H,W] in [-1, 1] → logits [B,1,h,w]."""
        return self.net(pixels_BCHW)
