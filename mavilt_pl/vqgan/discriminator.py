"""PatchGAN discriminator (pix2pix, arXiv 1611.07004), as in taming-transformers."""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """Pixels [B,1,H,W] → one logit a patch [B,1,h,w]; high means real.

    Group norm instead of batch norm: statistics of a batch differ between ranks and between real
    and drawn halves.
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        net: list[nn.Module] = [nn.Conv2d(1, channels, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        width = channels
        for n in range(1, layers + 1):
            wide = channels * min(2**n, 8)
            stride = 2 if n < layers else 1
            net += [
                nn.Conv2d(width, wide, 4, stride, 1, bias=False),
                nn.GroupNorm(8, wide),
                nn.LeakyReLU(0.2, True),
            ]
            width = wide
        net.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.net = nn.Sequential(*net)
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.net(pixels_BCHW)
