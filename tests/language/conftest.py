from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mavilt_pl.data.tokens import write_tokens
from mavilt_pl.language.backbone import train_tokenizer
from mavilt_pl.language.stage2 import Stage2

TEXTS = [
    "The heart is enlarged. No pleural effusion or pneumothorax.",
    "Draw <image> and </image>.",
    "Is there an effusion? yes no",
] * 4


@pytest.fixture(scope="session", params=["llama-tied", "gpt2-untied"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model with its own tokenizer, saved as Hugging Face saves it."""
    out = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer(TEXTS, 300)
    rows = len(tokenizer) + 3  # models pad their vocabulary
    torch.manual_seed(0)
    if request.param == "llama-tied":
        config = LlamaConfig(
            vocab_size=rows,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
        model: torch.nn.Module = LlamaForCausalLM(config)
    else:
        config = GPT2Config(vocab_size=rows, n_embd=32, n_layer=2, n_head=2, n_positions=256, tie_word_embeddings=False)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(out)  # type: ignore[operator]
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokens")
    random = np.random.default_rng(0)
    write_tokens(out, "corpus", "tokenizer-a", random.normal(size=(20, 4)), 3, 5, [random.integers(0, 20, (5, 9))])
    return out


@pytest.fixture
def stage2(backbone: Path, tokens: Path) -> Stage2:
    torch.manual_seed(0)
    module = Stage2(str(backbone), str(tokens), drift=0.1, max_words=12).eval()
    torch.nn.init.normal_(module.place, std=0.2)
    return module
