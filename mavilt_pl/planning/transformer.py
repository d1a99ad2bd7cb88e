"""Weights of a causal language model, and what its blocks save for the backward pass.

Activations are counted as autograd saves them: the tensors between a layer's operations that the
backward pass reads, one by one, for the blocks of transformers' own models under sdpa.
`benchmarks/plan.py` compares with what is measured. Dropout of the attention itself (GPT-2's
attn_pdrop) is taken to cost nothing, as on a GPU; a CPU keeps the attention matrices for it.

Legend of formulas: D hidden size, I intermediate size, Q and K width of all query and of all key
heads together; R bytes of a number in the residual stream and the norms, A bytes of a number that a
matrix product returns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mavilt_pl.errors import UserError
from mavilt_pl.language.hub import config_file

Method = Literal["full", "lora", "new_rows"]
# Model types whose blocks are Llama's: RMS norms, a gated MLP, grouped key heads.
GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3")


@dataclass(frozen=True)
class Transformer:
    """Shape of a language model, as far as it decides on memory.

    Args:
        name: for messages and titles.
        kind: of its blocks: gated (Llama and its kin), gpt2, or neox (Pythia).
        vocab_size: rows of the embedding before the vocabulary grows.
        hidden_size: D.
        intermediate_size: I, inside the MLP.
        num_layers: blocks.
        num_heads: query heads.
        num_key_heads: key and value heads; fewer with grouped-query attention.
        head_dim: width of one head.
        tied: the head is the embedding's weight.
        qkv_bias: queries, keys and values of a gated block have a bias.
        num_positions: rows of a learned position embedding.
        counted_weights: number of weights as the model itself has them; None computes it.
    """

    name: str
    kind: Literal["gated", "gpt2", "neox"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_dim: int
    tied: bool
    qkv_bias: bool = False
    num_positions: int = 0
    counted_weights: int | None = None

    @property
    def query_width(self) -> int:
        """Q."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """K."""
        return self.num_key_heads * self.head_dim

    @property
    def projections(self) -> list[tuple[int, int]]:
        """Input and output width of each linear layer of a block."""
        D, inner = self.hidden_size, self.intermediate_size
        if self.kind == "gated":
            Q, K = self.query_width, self.key_width
            # Query, key, value and output; gate, up and down.
            return [(D, Q), (D, K), (D, K), (Q, D), (D, inner), (D, inner), (inner, D)]
        # Query, key and value in one; output; the two layers of the MLP.
        return [(D, 3 * D), (D, D), (D, inner), (inner, D)]

    @property
    def matrix_weights(self) -> int:
        """Weights of the matrices of all blocks.

        Muon trains these, and autocast keeps copies of these in half precision.
        """
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.projections)

    @property
    def weights(self) -> int:
        """All weights before the vocabulary grows.

        >>> f"{PUBLISHED['7'].weights:,}"
        '6,738,415,616'
        """
        if self.counted_weights is not None:
            return self.counted_weights
        D = self.hidden_size
        output_widths = [outputs for _, outputs in self.projections]
        if self.kind == "gated":
            norms = (2 * self.num_layers + 1) * D
            biases = 0
            if self.qkv_bias:
                biases = sum(output_widths[:3])
        else:
            # A layer norm has a bias too, and so does every linear layer.
            norms = (2 * self.num_layers + 1) * 2 * D
            biases = sum(output_widths)
        embedding = self.row_weights(self.vocab_size) + self.num_positions * D
        return self.matrix_weights + norms + self.num_layers * biases + embedding

    def row_weights(self, rows: int) -> int:
        """Weights of this many tokens, in the embedding and in the head."""
        copies = 1 if self.tied else 2
        return rows * self.hidden_size * copies

    def adapter_weights(self, rank: int) -> int:
        """Weights of LoRA on every linear layer of the blocks."""
        widths = sum(inputs + outputs for inputs, outputs in self.projections)
        return self.num_layers * rank * widths

    def activation_bytes(
        self, method: Method, residual_bytes: int, matmul_bytes: int, masked: bool
    ) -> int:
        """Bytes that one block saves for each position.

        Args:
            method: as `tuning.method`; fixed weights need no saved inputs.
            residual_bytes: R.
            matmul_bytes: A.
            masked: branches share a prefix. Under an explicit mask sdpa takes no grouped heads, so
                keys and values are repeated for each query head.
        """
        D, inner = self.hidden_size, self.intermediate_size
        R, A = residual_bytes, matmul_bytes
        full = method == "full"
        if self.kind == "gated":
            Q = self.query_width
            K = Q if masked else self.key_width
            # The residual before each of the two norms.
            kept = 2 * D * R
            if full:
                # What was normalised, for the gradient of the norm's weight.
                kept += 2 * D * R
            # Query and mixed values; key and value; gate, its SiLU, and up.
            kept += A * (2 * Q + 2 * K + 3 * inner)
        elif self.kind == "gpt2":
            # Layer norms save their input. Query, key, value and mixed values. gelu_new consists of
            # seven operations, of which four save a tensor. Two dropouts save a mask of a byte.
            kept = 2 * D * R + A * (3 * D + D + 4 * inner) + 2 * D
        else:
            # Both norms read one residual. Query, key and value stay as one tensor, next to the
            # rotated query and key.
            kept = D * R + A * (3 * D + 2 * D + D + inner)
        if full:
            # For the gradients of the matrices, the inputs of their products: the outputs of both
            # norms, and the input of the MLP's last layer. The mixed values are counted above.
            kept += A * (2 * D + inner)
        if method == "lora":
            # Each adapter keeps its own input after dropout, and a mask of a byte.
            kept += (A + 1) * sum(inputs for inputs, _ in self.projections)
        return kept


# Published shapes, by 10⁹ weights, so that a size alone can be planned for without any file. In the
# order of the fields: vocabulary, hidden size, intermediate size, layers, heads, key heads, width
# of a head, tied.
PUBLISHED = {
    "0.1": Transformer(
        "GPT-2 (124 M)", "gpt2", 50257, 768, 3072, 12, 12, 12, 64, True, num_positions=1024
    ),
    "0.4": Transformer("Pythia 410M", "neox", 50304, 1024, 4096, 24, 16, 16, 64, False),
    "0.5": Transformer(
        "Qwen2.5 0.5B", "gated", 151936, 896, 4864, 24, 14, 2, 64, True, qkv_bias=True
    ),
    "1": Transformer("Llama 3.2 1B", "gated", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "1.4": Transformer("Pythia 1.4B", "neox", 50304, 2048, 8192, 24, 16, 16, 128, False),
    "2.8": Transformer("Pythia 2.8B", "neox", 50304, 2560, 10240, 32, 32, 32, 80, False),
    "3": Transformer("Llama 3.2 3B", "gated", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "7": Transformer("Llama 2 7B", "gated", 32000, 4096, 11008, 32, 32, 32, 128, False),
}


def count_weights(config: Mapping[str, Any]) -> int:
    """Weights of the model that transformers builds from a config, on the meta device.

    Tied weights count once. What arithmetic would overlook is included, such as Qwen 3's norms of
    queries and keys.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return sum(weight.numel() for weight in model.parameters())


def from_config(config: Mapping[str, Any], name: str) -> Transformer:
    """Shape of the model that a config.json describes.

    Args:
        config: as transformers writes it.
        name: of the model, for messages.

    Raises:
        UserError: the kind of model is not known here, or a key is missing.
    """
    # Models of several modalities have their language model's config inside.
    config = config.get("text_config") or config
    kind = config.get("model_type")
    if kind not in ("gpt2", "gpt_neox", *GATED):
        raise UserError(
            f"{name}: model_type {kind} cannot be planned for; known are gpt2, gpt_neox, "
            f"{', '.join(GATED)}. Use --size with a model of about as many weights"
        )
    try:
        shape = _gpt2_shape(config) if kind == "gpt2" else _llama_or_neox_shape(config)
    except KeyError as error:
        raise UserError(
            f"{name}: its config.json has no {error.args[0]}, which a {kind} model has"
        ) from None
    return Transformer(name=name, counted_weights=count_weights(config), **shape)


def _gpt2_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden_size, num_heads = config["n_embd"], config["n_head"]
    return {
        "kind": "gpt2",
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden_size,
        "intermediate_size": config.get("n_inner") or 4 * hidden_size,
        "num_layers": config["n_layer"],
        "num_heads": num_heads,
        "num_key_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "tied": config.get("tie_word_embeddings", True),
        "num_positions": config["n_positions"],
    }


def _llama_or_neox_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
    shape = {
        "kind": "neox",
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden_size,
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": num_heads,
        "num_key_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "tied": config.get("tie_word_embeddings", False),
    }
    if config["model_type"] == "gpt_neox":
        return shape
    shape["kind"] = "gated"
    # Older configs of Llama have neither key; there all heads have keys of their own.
    shape["num_key_heads"] = config.get("num_key_value_heads") or num_heads
    shape["head_dim"] = config.get("head_dim") or hidden_size // num_heads
    # Qwen 2 has the bias without a key for it.
    shape["qkv_bias"] = config.get("attention_bias", config["model_type"] == "qwen2")
    return shape


def read_transformer(backbone: str) -> Transformer:
    """Shape of the model in a folder or on the hub; only its config.json is read.

    Raises:
        UserError: there is no readable config.json, or its kind of model is not known here.
    """
    path = config_file(backbone)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return from_config(config, backbone)
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {backbone}: {path} cannot be read ({error}); name a folder that "
            f"save_pretrained wrote, or use --size, one of {', '.join(PUBLISHED)}"
        ) from None
