"""The visual tokenizer: pixels to codes and back."""

from mavilt_pl.vqgan.module import VQGAN, Tokenizer, load_tokenizer

__all__ = ["VQGAN", "Tokenizer", "load_tokenizer"]
