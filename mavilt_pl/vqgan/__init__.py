"""The visual tokenizer: pixels to codes and back."""

from mavilt_pl.vqgan.loading import load_tokenizer, published_shape, published_weights
from mavilt_pl.vqgan.module import VQGAN
from mavilt_pl.vqgan.tokenizer import Tokenizer

__all__ = ["VQGAN", "Tokenizer", "load_tokenizer", "published_shape", "published_weights"]
