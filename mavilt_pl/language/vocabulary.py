"""How a causal language model's vocabulary grows by images.

The model's embedding has V rows. Behind them stands one contiguous block: a few marks, then the K
codes. Old ids do not move, and the tokenizer never learns the new ones: text that contains
`<image>` literally stays text. `<end>` is the first mark, so that "the old vocabulary and `<end>`"
is one slice of the head. Marks of views, where there are any, stand behind the codes: a model
without them has the same ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mavilt_pl.data.records import Side
from mavilt_pl.errors import UserError

MARKS = ("<end>", "<begin>", "<image>", "</image>", "<report>", "<answer>")
VIEW_MARKS: dict[Side, str] = {"frontal": "<frontal>", "lateral": "<lateral>"}


@dataclass(frozen=True)
class VisualVocabulary:
    """Ids of the marks and codes. `text` is V, the model's rows before it grew; `codes` is K;
    `length` is N, the number of codes in an image; `words` is how many of the V rows the tokenizer
    uses (models pad their rows); `views` says whether there are marks of views.
    """

    text: int
    words: int
    codes: int
    length: int
    views: bool = False

    @property
    def end(self) -> int:
        return self.text

    def mark(self, name: str) -> int:
        return self.text + MARKS.index(name)

    @property
    def first_code(self) -> int:
        return self.text + len(MARKS)

    @property
    def last_code(self) -> int:
        """The id behind the last code."""
        return self.first_code + self.codes

    @property
    def total(self) -> int:
        return self.last_code + (len(VIEW_MARKS) if self.views else 0)

    def view_mark(self, view: Side) -> int:
        return self.last_code + [*VIEW_MARKS].index(view)

    def check(self, codes_BN: Tensor) -> None:
        """Refuse codes that are not N codes in [0, K)."""
        if codes_BN.numel() == 0:
            raise UserError(
                f"codes: found {tuple(codes_BN.shape)}, an image without codes; expected "
                f"{self.length} of them for each: "
                "run `mavilt tokenize` on the corpus"
            )
        if (
            codes_BN.shape[-1] != self.length
            or int(codes_BN.min()) < 0
            or int(codes_BN.max()) >= self.codes
        ):
            raise UserError(
                f"an image is {self.length} codes in [0, {self.codes}); found {codes_BN.shape[-1]} "
                f"codes in "
                f"[{int(codes_BN.min())}, {int(codes_BN.max())}]: the token cache is another "
                f"tokenizer's"
            )


@torch.no_grad()
def first_rows(
    model: nn.Module, vocabulary: VisualVocabulary, codebook: Tensor | None, noise: float = 1.0
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Where the block's rows start: embedding [R,D], head [R,D] (None where it is tied), the head's
    bias [R] (None without).

    A new row starts at the mean of the old ones. What is added to it has `noise` times the old
    rows' spread: random for the marks, and for the codes a random projection of the codebook [K,
    width], so that codes which look alike start alike (measured in EXPERIMENTS.md). Without a
    codebook the codes' part is random too.
    """
    old = model.get_input_embeddings().weight
    words = old[: vocabulary.words].float()
    mean, spread = words.mean(0), words.std(0).mean()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(vocabulary.total - vocabulary.text, len(mean), generator=generator)
    if codebook is not None:
        code = codebook.float().cpu()
        code = (code - code.mean(0)) / (code.std() + 1e-6)
        projection = (
            torch.randn(code.shape[1], len(mean), generator=generator) / code.shape[1] ** 0.5
        )
        direction[len(MARKS) : len(MARKS) + len(code)] = code @ projection
    embedding = (mean + noise * spread * direction.to(mean)).to(old.dtype)
    head, head_rows, bias = model.get_output_embeddings(), None, None
    if head.weight is not old:
        known = head.weight[: vocabulary.words].float()
        head_rows = (known.mean(0) + noise * known.std(0).mean() * direction.to(known)).to(
            old.dtype
        )
    if getattr(head, "bias", None) is not None:
        bias = head.bias[: vocabulary.words].mean().repeat(len(direction))
    return embedding, head_rows, bias


@torch.no_grad()
def grow(
    model: nn.Module, vocabulary: VisualVocabulary, codebook: Tensor | None, noise: float = 1.0
) -> None:
    """Add the block's rows to the embedding and, where it is not tied, to the head; see
    `first_rows`.
    """
    embedding, head_rows, bias = first_rows(model, vocabulary, codebook, noise)
    model.resize_token_embeddings(vocabulary.total, mean_resizing=False)
    model.get_input_embeddings().weight[vocabulary.text :] = embedding
    head = model.get_output_embeddings()
    if head_rows is not None:
        head.weight[vocabulary.text :] = head_rows
    if bias is not None:
        head.bias[vocabulary.text :] = bias
