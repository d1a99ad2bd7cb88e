"""Weights of a causal language model, and what a step of its training keeps in memory, from its
config.json.

Activations are counted as autograd saves them: the tensors between a layer's operations that the
backward pass reads, one by one, for the blocks of transformers' own models under sdpa.
`benchmarks/plan.py` compares with what is measured. Dropout of the attention itself (GPT-2's
attn_pdrop) is taken to cost nothing, as on a GPU; a CPU keeps the attention matrices for it.

Legend: D width, q and k what all query and key heads are wide together; R bytes of a number in the
residual stream and the norms, A bytes of a number that a matrix product makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mavilt_pl.errors import UserError

Tuning = Literal["full", "lora", "new_rows"]
GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3")
MARKS = 6  # `vocabulary.MARKS`


@dataclass(frozen=True)
class Transformer:
    """What of a config.json decides on memory. `kind`: gated (Llama and its kin), gpt2, or neox
    (Pythia).
    """

    name: str
    kind: Literal["gated", "gpt2", "neox"]
    words: int
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    tied: bool
    bias: bool = False  # of queries, keys and values, in a gated one
    positions: int = 0  # learned ones

    @property
    def _projections(self) -> list[tuple[int, int]]:
        """In and out of each linear layer of a block."""
        D, inner, q, k = (
            self.width,
            self.inner,
            self.heads * self.head_width,
            self.key_heads * self.head_width,
        )
        if self.kind == "gated":
            return [(D, q), (D, k), (D, k), (q, D), (D, inner), (D, inner), (inner, D)]
        return [(D, 3 * D), (D, D), (D, inner), (inner, D)]

    @property
    def matrices(self) -> int:
        """Weights of all blocks' matrices: what Muon moves, and what a product in half precision is
        given copies of.
        """
        return self.layers * sum(inside * outside for inside, outside in self._projections)

    @property
    def weights(self) -> int:
        """All weights before the vocabulary grows."""
        D, outs = self.width, [outside for _, outside in self._projections]
        norms = (2 * self.layers + 1) * D * (1 if self.kind == "gated" else 2)
        biases = self.layers * (sum(outs) if self.kind != "gated" else sum(outs[:3]) * self.bias)
        embeddings = (self.words * (1 if self.tied else 2) + self.positions) * D
        return self.matrices + norms + biases + embeddings

    def new_rows(self, codes: int) -> int:
        """Weights of the marks and codes, embedding and head."""
        return (MARKS + codes) * self.width * (1 if self.tied else 2)

    def adapters(self, rank: int) -> int:
        """Weights of LoRA on every linear layer of the blocks."""
        return self.layers * rank * sum(inside + outside for inside, outside in self._projections)

    def saved(self, tuning: Tuning, R: int, A: int, masked: bool) -> int:
        """Bytes that one block saves for each position. `masked`: branches share a prefix, so keys
        are repeated for each head.
        """
        D, inner, q = self.width, self.inner, self.heads * self.head_width
        k = q if masked else self.key_heads * self.head_width
        trained = tuning == "full"
        inputs = sum(inside for inside, _ in self._projections)
        if self.kind == "gated":
            # The residual before each norm, and what was normalised, for the norm's weight; query,
            # key, value and mixed values; gate, its SiLU and up; and the inputs of the products:
            # two norms' (the mixed values are counted), gate × up.
            kept = 2 * D * R * (2 if trained else 1) + A * (2 * q + 2 * k + 3 * inner)
            kept += A * (2 * D + inner) if trained else 0
        elif self.kind == "gpt2":
            # Layer norms save their input. gelu_new is made of seven operations, of which four keep
            # a tensor; three dropouts.
            kept = 2 * D * R + A * (3 * D + D + 4 * inner) + 2 * D
            kept += A * (2 * D + inner) if trained else 0
        else:
            # Both norms read one residual. Query, key and value stay as one tensor, and the turned
            # query and key beside it.
            kept = D * R + A * (3 * D + 2 * D + D + inner)
            kept += A * (2 * D + inner) if trained else 0
        if tuning == "lora":  # each adapter keeps its own input after dropout, and the mask
            kept += inputs * (A + 1)
        return kept


# Published shapes, so that a size alone can be planned for: words, width, inner, layers, heads, key
# heads, width of a head.
KNOWN = {
    "0.1": Transformer(
        "GPT-2 (124 M)", "gpt2", 50257, 768, 3072, 12, 12, 12, 64, True, positions=1024
    ),
    "0.4": Transformer("Pythia 410M", "neox", 50304, 1024, 4096, 24, 16, 16, 64, False),
    "0.5": Transformer("Qwen2.5 0.5B", "gated", 151936, 896, 4864, 24, 14, 2, 64, True, bias=True),
    "1": Transformer("Llama 3.2 1B", "gated", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "1.4": Transformer("Pythia 1.4B", "neox", 50304, 2048, 8192, 24, 16, 16, 128, False),
    "2.8": Transformer("Pythia 2.8B", "neox", 50304, 2560, 10240, 32, 32, 32, 80, False),
    "3": Transformer("Llama 3.2 3B", "gated", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "7": Transformer("Llama 2 7B", "gated", 32000, 4096, 11008, 32, 32, 32, 128, False),
}


def from_config(config: Mapping[str, Any], name: str) -> Transformer:
    """Of a config.json as transformers writes it; `UserError` for a kind of model that is not known
    here.
    """
    config = config.get("text_config") or config
    kind = config.get("model_type")
    try:
        if kind == "gpt2":
            D, heads = config["n_embd"], config["n_head"]
            inner, tied = config.get("n_inner") or 4 * D, config.get("tie_word_embeddings", True)
            return Transformer(
                name,
                "gpt2",
                config["vocab_size"],
                D,
                inner,
                config["n_layer"],
                heads,
                heads,
                D // heads,
                tied,
                positions=config["n_positions"],
            )
        if kind not in (*GATED, "gpt_neox"):
            raise UserError(
                f"{name}: model_type {kind} cannot be planned for; known are gpt2, gpt_neox, "
                f"{', '.join(GATED)}. Take --size "
                "with a model of about so many weights"
            )
        D, heads = config["hidden_size"], config["num_attention_heads"]
        shape = (
            config["vocab_size"],
            D,
            config["intermediate_size"],
            config["num_hidden_layers"],
            heads,
        )
        tied = config.get("tie_word_embeddings", False)
        if kind == "gpt_neox":
            return Transformer(name, "neox", *shape, heads, D // heads, tied)
        key_heads, wide = (
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or D // heads,
        )
        return Transformer(
            name,
            "gated",
            *shape,
            key_heads,
            wide,
            tied,
            config.get("attention_bias", kind == "qwen2"),
        )
    except KeyError as error:
        raise UserError(
            f"{name}: its config.json has no {error.args[0]}, which a {kind} model has"
        ) from None
