"""How a causal language model's vocabulary grows by images.

The model's embedding has V rows. Behind them stands one contiguous block: a few special tokens,
then the K codes. Old ids do not move, and the tokenizer never learns the new ones: text that
contains `<image>` literally stays text. `<end>` is the first special token, so "the old vocabulary
and `<end>`" is one slice of the head. Tokens of views, if any, stand behind the codes: a model
without them has the same ids.

Shape legend: B studies, N codes an image, K codes of the codebook, R new rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mavilt_pl.data.records import Side
from mavilt_pl.errors import UserError

# `<end>` must stay first: it follows the old rows directly. Ids are positions in these tuples, so
# another order makes old checkpoints and caches mean other tokens.
SPECIAL_TOKENS = ("<end>", "<begin>", "<image>", "</image>", "<report>", "<answer>")
VIEW_TOKENS: dict[Side, str] = {"frontal": "<frontal>", "lateral": "<lateral>"}


@dataclass(frozen=True)
class VisualVocabulary:
    """Ids of the special tokens and codes.

    Args:
        num_text_rows: V, rows of the model before it grew.
        num_used_rows: rows that the tokenizer uses; models pad their rows.
        codebook_size: K.
        codes_per_image: N.
        multi_view: whether there are tokens of views.

    >>> vocabulary = VisualVocabulary(100, 90, codebook_size=16, codes_per_image=4)
    >>> vocabulary.end, vocabulary.first_code, vocabulary.code_stop, vocabulary.num_rows
    (100, 106, 122, 122)
    """

    num_text_rows: int
    num_used_rows: int
    codebook_size: int
    codes_per_image: int
    multi_view: bool = False

    @property
    def end(self) -> int:
        """Id of `<end>`."""
        return self.num_text_rows

    def special_token_id(self, name: str) -> int:
        """Id of one of `SPECIAL_TOKENS`."""
        return self.num_text_rows + SPECIAL_TOKENS.index(name)

    @property
    def first_code(self) -> int:
        """Id of code 0."""
        return self.num_text_rows + len(SPECIAL_TOKENS)

    @property
    def code_stop(self) -> int:
        """The id behind the last code."""
        return self.first_code + self.codebook_size

    @property
    def num_rows(self) -> int:
        """Rows of the grown model."""
        return self.code_stop + (len(VIEW_TOKENS) if self.multi_view else 0)

    def view_token_id(self, view: Side) -> int:
        """Id of a view's token; only with `multi_view`."""
        return self.code_stop + [*VIEW_TOKENS].index(view)

    def check_codes(self, codes_BN: Tensor) -> None:
        """Refuse codes that are not N codes in [0, K) for each image.

        Raises:
            UserError: the codes are missing, or another tokenizer's.
        """
        # An empty tensor has no minimum to report.
        if codes_BN.numel() == 0:
            raise UserError(
                f"codes: found {tuple(codes_BN.shape)}, an image without codes; expected "
                f"{self.codes_per_image} of them for each: run `mavilt tokenize` on the corpus"
            )
        # The embedding would accept any id in range: codes of another tokenizer would train without
        # error.
        low, high = int(codes_BN.min()), int(codes_BN.max())
        if codes_BN.shape[-1] != self.codes_per_image or low < 0 or high >= self.codebook_size:
            raise UserError(
                f"an image is {self.codes_per_image} codes in [0, {self.codebook_size}); found "
                f"{codes_BN.shape[-1]} codes in [{low}, {high}]: the token cache is another "
                "tokenizer's"
            )


@torch.no_grad()
def initial_rows(
    model: nn.Module, vocabulary: VisualVocabulary, codebook: Tensor | None, noise: float = 1.0
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Initial values of the new rows.

    A new row starts at the mean of the old ones, plus a direction of `noise` times the old rows'
    spread. The direction is random for special tokens. For codes it is a random projection of the
    codebook, so that codes which look alike start alike (measured in EXPERIMENTS.md); without a
    codebook it is random too.

    Args:
        model: a Hugging Face causal language model.
        vocabulary: the grown vocabulary.
        codebook: float [K, width], or None.
        noise: size of the direction.

    Returns:
        Embedding rows [R,D]; head rows [R,D], None if the head is tied; head bias [R], None if the
        head has none.
    """
    old = model.get_input_embeddings().weight
    # Padding rows were never trained and would shift mean and spread.
    used = old[: vocabulary.num_used_rows].float()
    mean, spread = used.mean(0), used.std(0).mean()
    # A fixed seed, not the run's: `initial_generator` must build the same rows again, for the
    # perplexity before training.
    generator = torch.Generator().manual_seed(0)
    added = vocabulary.num_rows - vocabulary.num_text_rows
    direction = torch.randn(added, len(mean), generator=generator)
    if codebook is not None:
        code = codebook.float().cpu()
        # Centred and scaled, then projected with unit variance a coordinate: rows of codes have the
        # same size as random ones.
        code = (code - code.mean(0)) / (code.std() + 1e-6)
        projection = torch.randn(code.shape[1], len(mean), generator=generator)
        projection = projection / code.shape[1] ** 0.5
        first = len(SPECIAL_TOKENS)
        direction[first : first + len(code)] = code @ projection
    # A noise of 1 is the full spread of the old rows. With λ_reg 0, 0.3 of it gave presence
    # questions a mean AUROC of 0.891; the full spread, with more weight on answers, 0.920
    # (EXPERIMENTS.md).
    embedding = (mean + noise * spread * direction.to(mean)).to(old.dtype)
    head, head_rows, bias = model.get_output_embeddings(), None, None
    # An untied head uses the same directions around its own mean, scaled by its own spread.
    if head.weight is not old:
        used = head.weight[: vocabulary.num_used_rows].float()
        offset = noise * used.std(0).mean() * direction.to(used)
        head_rows = (used.mean(0) + offset).to(old.dtype)
    if getattr(head, "bias", None) is not None:
        # A bias of zero could make all new rows far more or less likely than the old ones.
        bias = head.bias[: vocabulary.num_used_rows].mean().repeat(len(direction))
    return embedding, head_rows, bias


@torch.no_grad()
def grow_model(
    model: nn.Module, vocabulary: VisualVocabulary, codebook: Tensor | None, noise: float = 1.0
) -> None:
    """Append the new rows to the embedding and, if it is not tied, to the head, in place."""
    embedding, head_rows, bias = initial_rows(model, vocabulary, codebook, noise)
    # transformers' own mean_resizing would sample other values, at the cost of a covariance matrix.
    model.resize_token_embeddings(vocabulary.num_rows, mean_resizing=False)
    first = vocabulary.num_text_rows
    model.get_input_embeddings().weight[first:] = embedding
    head = model.get_output_embeddings()
    if head_rows is not None:
        head.weight[first:] = head_rows
    if bias is not None:
        head.bias[first:] = bias
