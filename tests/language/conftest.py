"""Tiny random language models of five families, each with a tokenizer of its own, saved as Hugging
Face saves them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mavilt_pl.data.token_cache import write_tokens

KINDS = [
    f"{family}-{head}"
    for family in ("gpt2", "neox", "llama", "qwen2", "phi")
    for head in ("tied", "untied")
]
TEXTS = [
    "The heart is enlarged. No pleural effusion or pneumothorax.",
    "Is there an effusion? yes no",
    "No edema.  The lungs are clear.",
] * 4


def _byte_level(size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """As Llama's first: spaces as ▁, unknown characters as bytes, and <s> before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def save_backbone(kind: str, out: Path, context: int = 128) -> Path:
    """`kind` is family-tied or family-untied. Every family's embedding has rows that its tokenizer
    does not use, but Llama's.
    """
    family, tied = kind.split("-")[0], kind.endswith("-tied")
    if family == "gpt2":  # neither end nor pad
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level(280, []))
    elif family == "neox":  # no pad, and a token <image> of its own
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_byte_level(290, ["<|end|>"]), eos_token="<|end|>"
        )
        tokenizer.add_tokens([AddedToken("<image>", normalized=False)])
    elif family == "llama":
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_sentencepiece(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
    elif family == "qwen2":  # pad, no end
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_byte_level(300, ["<|pad|>"]), pad_token="<|pad|>"
        )
    else:  # runs of spaces are tokens, as CodeGen's tokenizer has them
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_byte_level(280, ["<|end|>"]), eos_token="<|end|>"
        )
        tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in (2, 4, 8)])
    rows = len(tokenizer) + (0 if family == "llama" else 64 - len(tokenizer) % 64)
    shape = {
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    usual = {
        **shape,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    usual["max_position_embeddings"] = context
    config = {
        "gpt2": lambda: GPT2Config(
            **shape,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=context,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        ),
        "neox": lambda: GPTNeoXConfig(**usual),
        "llama": lambda: LlamaConfig(**usual, num_key_value_heads=2),
        "qwen2": lambda: Qwen2Config(**usual, num_key_value_heads=2),
        "phi": lambda: PhiConfig(**usual, resid_pdrop=0, embd_pdrop=0, attention_dropout=0),
    }[family]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases and norms start alike everywhere; a trained model's do not
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="session", params=KINDS)
def any_backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Path]:
    return save_backbone


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone("llama-tied", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty codes, nine an image."""
    out = tmp_path_factory.mktemp("tokens")
    random = np.random.default_rng(0)
    write_tokens(
        out,
        "corpus",
        "tokenizer-a",
        random.normal(size=(20, 4)),
        3,
        5,
        [random.integers(0, 20, (5, 9))],
    )
    return out
