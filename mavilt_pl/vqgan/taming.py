"""Published VQ-GANs in the layout of taming-transformers: recognise a file and read its shape.

A published file is recognised by its keys:

| keys | network | our channel is |
| --- | --- | --- |
| `encoder.conv_in.…` | taming-transformers (arXiv 2012.09841); `loss.…` is ignored | the mean |
| `model.encoder.conv_in.…` | torchxrayvision's `ieee8023.VQGAN`, 768² by default | the first |

Both take [-1, 1] (torchxrayvision divides its [-1024, 1024] by 1024 in `encode`), so nothing is
scaled here.

These networks are fully convolutional and do not contain their image size. It is an argument, or
part of the file, which is then {"state_dict": …, "image_size": 256}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mavilt_pl.checkpoint import read_weights
from mavilt_pl.errors import UserError

Source = Literal["taming", "torchxrayvision"]

OUR_MARK = "tokenizer.autoencoder.out.weight"
FIRST_CONV = "encoder.conv_in.weight"
CODEBOOK = "quantize.embedding.weight"
MARKS = (FIRST_CONV, "decoder.conv_in.weight", CODEBOOK)
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
PREFIXES: dict[Source, str] = {"taming": "", "torchxrayvision": "model."}
TORCHXRAYVISION_IMAGE_SIZE = 768

CONVERT = (
    "If you trust the file, save its tensors alone. A checkpoint of taming-transformers, on a "
    'machine that has the package: python -c "import torch; '
    "torch.save({'state_dict': torch.load('last.ckpt', weights_only=False, "
    "map_location='cpu')['state_dict'], 'image_size': 256}, 'vqgan.pt')\"; torchxrayvision's: "
    'python -c "import torch, torchxrayvision as xrv; '
    "torch.save(xrv.baseline_models.ieee8023.VQGAN('cxr2-vqgan-768-sd').state_dict(), 'vqgan.pt')\""
)


@dataclass(frozen=True)
class PublishedVQGAN:
    """A published VQ-GAN as it was read.

    Args:
        path: its file, for messages.
        source: whose layout it has.
        weights: its weights under taming's keys, without those of the loss.
        stored_image_size: side of its images according to the file; None if it does not say.
    """

    path: str | Path
    source: Source
    weights: Mapping[str, Tensor]
    stored_image_size: int | None

    @classmethod
    def read(cls, path: str | Path) -> PublishedVQGAN:
        """Read a file as tensors only; raises `UserError` if it is no published VQ-GAN."""
        return cls.from_checkpoint(path, read_weights(path, CONVERT))

    @classmethod
    def from_checkpoint(cls, path: str | Path, checkpoint: Mapping[str, Any]) -> PublishedVQGAN:
        """Recognise the layout of a file that has been read.

        Raises:
            UserError: it is of another module, or incomplete.
        """
        state = checkpoint.get("state_dict", checkpoint)
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        # torchxrayvision wraps taming's network in `model.`; otherwise the keys are the same.
        for source, prefix in PREFIXES.items():
            # Any mark is enough to recognise a layout; what is missing is then reported by name.
            if not any(prefix + mark in tensors for mark in MARKS):
                continue
            weights = {}
            for key, value in tensors.items():
                name = key.removeprefix(prefix)
                # The loss of a training (LPIPS, discriminator) is in the file too and is not
                # needed.
                if key.startswith(prefix) and name.startswith(PARTS):
                    weights[name] = value
            size = checkpoint.get("image_size")
            if not size and source == "torchxrayvision":
                size = TORCHXRAYVISION_IMAGE_SIZE
            published = cls(path, source, weights, size or None)
            for mark in MARKS:
                published.weight(mark)
            return published
        raise _foreign(path, state, tensors)

    def weight(self, key: str) -> Tensor:
        """A weight by its name in taming's layout; raises `UserError` if it is missing."""
        # A variant of the network fails here, by the name of what it lacks.
        if key not in self.weights:
            advice = "the file is incomplete, or of another layout"
            if key.startswith("quantize."):
                advice = "networks without a codebook (KL) or with a Gumbel one are not supported"
            raise UserError(
                f"{self.path} has {len(self.weights)} weights of a VQ-GAN and lacks {key}; {advice}"
            )
        return self.weights[key]

    @property
    def levels(self) -> int:
        """Number of resolutions of the encoder."""
        return _count_indices(self.weights, "encoder.down.")

    def shape(
        self, image_size: int | None = None, default_image_size: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of `Autoencoder` and of `Quantizer` that build this network.

        Args:
            image_size: side of the images, whatever the file says.
            default_image_size: side of the images if neither `image_size` nor the file says.

        Raises:
            UserError: the size is unknown, or the network is not one of taming-transformers.
        """
        size = image_size or self.stored_image_size or default_image_size
        if size is None:
            raise self._unknown_image_size()
        channels = self._check_channels()
        levels = self.levels
        multipliers = []
        for level in range(levels):
            width = self.weight(f"encoder.down.{level}.block.0.conv1.weight").shape[0]
            # Multipliers are whole in `Autoencoder`, as in taming's configs.
            if width % channels:
                raise UserError(
                    f"{self.path} has a level of {width} channels, no multiple of the first "
                    f"convolution's {channels}"
                )
            multipliers.append(width // channels)
        factor = 2 ** (levels - 1)
        if size % factor:
            raise UserError(
                f"{self.path} halves its images {levels - 1} times and takes multiples of "
                f"{factor}, not {size}"
            )
        attention = []
        for level in range(levels):
            if f"encoder.down.{level}.attn.0.q.weight" in self.weights:
                # Recorded by resolution, as the published configs name it.
                attention.append(size >> level)
        latent_dim = self._check_latent_dim()
        codebook_size, code_dim = self.weight(CODEBOOK).shape
        autoencoder = {
            "image_size": size,
            "channels": channels,
            "channel_multipliers": multipliers,
            "num_res_blocks": _count_indices(self.weights, "encoder.down.0.block."),
            "attention_resolutions": attention,
            "latent_dim": latent_dim,
            # Fixed in taming's code, so no file says them.
            "groups": 32,
            "asymmetric": True,
            "middle_attention": "encoder.mid.attn_1.q.weight" in self.weights,
        }
        quantizer = {
            "codebook_size": codebook_size,
            "code_dim": code_dim,
            "cosine": False,
            "kmeans": False,
            "project": True,
        }
        return autoencoder, quantizer

    def _unknown_image_size(self) -> UserError:
        return UserError(
            f"{self.path} is a VQ-GAN of taming-transformers, which does not say its image size: "
            "give image_size (mavilt tokenize: --image-size), or store it: python -c "
            f"\"import torch; torch.save({{'state_dict': torch.load('{self.path}', "
            "weights_only=True).get('state_dict'), 'image_size': 256}, 'vqgan.pt')\""
        )

    def _check_channels(self) -> int:
        """Width of the first level; raises if the images are neither grey nor in three channels."""
        channels, inputs = self.weight(FIRST_CONV).shape[:2]
        outputs = self.weight("decoder.conv_out.weight").shape[0]
        if inputs not in (1, 3) or outputs != inputs:
            raise UserError(
                f"{self.path} takes {inputs} channels and gives {outputs}; expected 1 and 1, or 3 "
                "and 3, of a grey image"
            )
        return channels

    def _check_latent_dim(self) -> int:
        latent_dim = self.weight("encoder.conv_out.weight").shape[0]
        inputs = self.weight("quant_conv.weight").shape[1]
        outputs = self.weight("post_quant_conv.weight").shape[0]
        if (inputs, outputs) != (latent_dim, latent_dim):
            raise UserError(
                f"{self.path}: the encoder ends in {latent_dim} channels, quant_conv takes "
                f"{inputs} and post_quant_conv gives {outputs}; expected one width"
            )
        return latent_dim


def _foreign(
    path: str | Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> UserError:
    # A frequent mix-up: `init_from` with a run of our own.
    if OUR_MARK in state:
        return UserError(
            f"{path} is a checkpoint of our own VQGAN; expected a published one. Resume it with "
            "--ckpt_path"
        )
    names = [str(key) for key in (tensors or state)]
    first = ", ".join(names[:3]) or "none"
    return UserError(
        f"{path} is a checkpoint of another module (found weights such as {first}); expected one "
        f"of VQGAN (mavilt fit --config vqgan.yaml; {OUR_MARK}), a VQ-GAN of taming-transformers "
        f"({FIRST_CONV}, {CODEBOOK}) or torchxrayvision's VQGAN "
        f"({PREFIXES['torchxrayvision']}{FIRST_CONV})"
    )


def _count_indices(keys: Iterable[str], prefix: str) -> int:
    """How many different i there are in keys `<prefix>i.…`.

    At least 1, so that the weights of index 0 are reported as missing.

    >>> _count_indices(["down.0.conv", "down.0.norm", "down.1.conv"], "down.")
    2
    """
    indices = set()
    for key in keys:
        if key.startswith(prefix):
            indices.add(key[len(prefix) :].split(".")[0])
    return max(1, len(indices))
