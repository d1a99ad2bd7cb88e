"""What Stage 1 and Stage 2 share: the grown language model, the losses on its targets, drift, and what it can do.

The position tells the modality, so the head is restricted: a text target is normalised over the old vocabulary and
`<end>`, an image target over the K codes (`loss_vocabulary: full` normalises both over everything, as LLM-CXR does).
Only hidden states at target positions meet the head, so no [B,T,V] logits exist.

Shape legend: B batch, T positions, N codes an image, K codes in the book, D width, M target positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from mavilt_pl.checkpoint import refuse_others
from mavilt_pl.data.study import DataError
from mavilt_pl.data.tokens import TokenCache
from mavilt_pl.language import decoding
from mavilt_pl.language.backbone import load_backbone
from mavilt_pl.language.drift import Drift
from mavilt_pl.language.optimizer import Kind, configured
from mavilt_pl.language.sequences import Branch, Packed, Tree, pack
from mavilt_pl.language.vocabulary import VisualVocabulary, grow

TASKS = ("report", "image", "answer")


class LanguageModule(LightningModule):
    """A causal language model with codes in its vocabulary. Subclasses say which sequences it is trained on.

    Args:
        backbone: folder or hub name of a pretrained causal language model.
        tokens: a token cache; its K, N and codebook shape the new rows. Any cache of the same tokenizer will do.
        init_from: checkpoint whose weights to start from (Stage 2: Stage 1's). Optional.
        task_weights: each task's share of the loss, whatever its length.
        loss_vocabulary: `modality` or `full`; see above.
        places: add a learned vector for a code's place on the grid, zero at the start.
        drift: λ of λ/2 ‖θ − θ₀‖² over the pretrained weights.
        drift_from: θ₀ is the `backbone`, or the weights at the start of this `stage`.
        condition_dropout: how often a drawing is trained without its text, so that guidance can be used.
        max_words: text targets are cut to so many tokens; how many were cut is logged.
        optimizer: adamw, or muon for a backbone that knows little yet (`optimizer.py`).
        learning_rate, matrix_rate: AdamW's, and Muon's of the weight matrices; linear warm-up over `warmup` steps.
        guidance, temperature, top_p: how images are drawn.
    """

    def __init__(
        self,
        backbone: str,
        tokens: str,
        init_from: str | None = None,
        task_weights: Mapping[str, float] | None = None,
        loss_vocabulary: Literal["modality", "full"] = "modality",
        places: bool = True,
        drift: float = 0.01,
        drift_from: Literal["backbone", "stage"] = "backbone",
        condition_dropout: float = 0.1,
        max_words: int = 128,
        optimizer: Kind = "adamw",
        learning_rate: float = 5e-6,
        matrix_rate: float = 0.02,
        warmup: int = 50,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 0.92,
    ):
        super().__init__()
        self.save_hyperparameters()
        weights = {"report": 1.0, "image": 1.0, "answer": 1.0} | dict(task_weights or {})
        if set(weights) - set(TASKS):
            raise DataError(
                f"task_weights: unknown task {sorted(set(weights) - set(TASKS))}; the tasks are {', '.join(TASKS)}"
            )
        self.task_weights = weights
        self.model, self.tokenizer = load_backbone(backbone)
        self.model.train()  # Hugging Face loads in evaluation mode, and Lightning leaves modes as it finds them
        cache = TokenCache(tokens)
        rows = self.model.get_input_embeddings().num_embeddings
        self.vocabulary = VisualVocabulary(rows, min(len(self.tokenizer), rows), cache.codes, cache.length)
        self.made_with_tokenizer = cache.tokenizer
        grow(self.model, self.vocabulary, torch.from_numpy(cache.codebook()))
        width = self.model.get_input_embeddings().embedding_dim
        self.place = nn.Parameter(torch.zeros(cache.length, width)) if places else None
        if drift_from == "backbone":
            self.drift = Drift(self.model, drift, rows)
        if init_from is not None:
            self._start_from(init_from)
        if drift_from == "stage":
            self.drift = Drift(self.model, drift, rows)

    def _start_from(self, path: str) -> None:
        if not Path(path).exists():
            raise DataError(f"init_from: {path} does not exist; expected the checkpoint of an earlier stage")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        self.on_load_checkpoint(checkpoint)
        self.load_state_dict(checkpoint["state_dict"])

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["visual_tokenizer"] = self.made_with_tokenizer

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        made_with = checkpoint.get("visual_tokenizer")
        if made_with is None:
            raise DataError(
                "the checkpoint is of another module: it has no visual tokenizer. Expected one of Stage 1 or Stage 2"
            )
        if made_with != self.made_with_tokenizer:
            raise DataError(
                f"the checkpoint was trained on the codes of tokenizer {made_with[:12]} and the token cache was made by "
                f"{self.made_with_tokenizer[:12]}: its codes mean different things. Train again, or tokenize with the first"
            )
        refuse_others(checkpoint, self)

    # The model's parts.

    @property
    def body(self) -> nn.Module:
        """The transformer without its head."""
        return self.model.base_model

    def embed(self, ids_BT: Tensor, places: Tensor | None = None) -> Tensor:
        """Embeddings [B,T,D]; codes get the vector of their place, counted along each row unless `places` is given."""
        out = self.model.get_input_embeddings()(ids_BT)
        if self.place is None:
            return out
        code = ids_BT >= self.vocabulary.first_code
        if places is None:
            places = (code.cumsum(1) - 1) % self.vocabulary.length
        return out + self.place[places.clamp(min=0)] * code[..., None].to(out.dtype)

    def _head(self, hidden: Tensor, first: int, last: int) -> Tensor:
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return F.linear(hidden, head.weight[first:last], None if bias is None else bias[first:last])

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Over the old vocabulary and `<end>`: [..., V + 1]."""
        return self._head(hidden, 0, self.vocabulary.end + 1)

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Over the codes: [..., K]."""
        return self._head(hidden, self.vocabulary.first_code, self.vocabulary.total)

    # Sequences.

    def words(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def target_words(self, text: str) -> list[int]:
        """A text target: at most `max_words` tokens, and `<end>`."""
        ids = self.words(text)
        self.cut_texts = getattr(self, "cut_texts", 0) + (len(ids) > self.hparams["max_words"])
        return [*ids[: self.hparams["max_words"]], self.vocabulary.end]

    def image_prefix(self, codes: Sequence[int]) -> list[int]:
        v = self.vocabulary
        return [v.mark("<begin>"), v.mark("<image>"), *(v.first_code + int(c) for c in codes), v.mark("</image>")]

    def report_prompt(self, key: str, training: bool) -> list[int]:
        """What follows the image when a report is wanted."""
        return [self.vocabulary.mark("<report>")]

    def draw_prompt(self, text: str | None, key: str = "", training: bool = False) -> list[int]:
        """Text (None: no condition), then `<image>`."""
        v = self.vocabulary
        words = [] if text is None else self.words(text)[: self.hparams["max_words"]]
        return [v.mark("<begin>"), *words, v.mark("<image>")]

    def drawing(self, codes: Sequence[int], text: str, key: str, training: bool) -> Tree:
        """One report→image sequence; in training its text is dropped now and then."""
        dropped = training and float(torch.rand(())) < self.hparams["condition_dropout"]
        target = [self.vocabulary.first_code + int(c) for c in codes]
        prompt = self.draw_prompt(None if dropped else text, key, training)
        return Tree(prompt, [Branch([], target, TASKS.index("image"), image=True)])

    def reading(self, codes: Sequence[int], study: Mapping[str, Any], training: bool) -> Tree:
        raise NotImplementedError

    def trees(self, batch: Mapping[str, Any], training: bool) -> list[list[Tree]]:
        """The batch as groups of trees; each group is one pass through the model."""
        self.vocabulary.check(batch["codes"])
        rows = batch["codes"].tolist()
        reading = [self.reading(codes, study, training) for codes, study in zip(rows, batch["studies"])]
        drawing = [self.drawing(codes, s["text"], s["study"], training) for codes, s in zip(rows, batch["studies"])]
        return [reading, drawing]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, dict) and "codes" in batch:
            batch["packed"] = [pack(group, self.vocabulary.end) for group in self.trees(batch, self.training)]
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Tensors and packed sequences move; the studies' records stay as they are."""
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)}
        packed = [group.to(device) for group in batch.get("packed", [])]
        return {**batch, **moved, "packed": packed}

    # The loss.

    def hidden(self, packed: Packed) -> Tensor:
        """Hidden states at the target positions [M,D]."""
        dtype = next(self.model.parameters()).dtype
        out = self.body(
            inputs_embeds=self.embed(packed.ids_BT),
            attention_mask=packed.mask(dtype),
            position_ids=packed.positions_BT,
            use_cache=False,
        ).last_hidden_state
        return out[packed.row_M, packed.column_M]

    def token_losses(self, packed: Packed) -> Tensor:
        """Cross-entropy of every target, nats [M]."""
        hidden_MD = self.hidden(packed)
        v = self.vocabulary
        if self.hparams["loss_vocabulary"] == "full":
            return F.cross_entropy(self._head(hidden_MD, 0, v.total).float(), packed.target_M, reduction="none")
        losses = hidden_MD.new_zeros(len(hidden_MD), dtype=torch.float32)
        image = packed.image_M
        if bool(image.any()):
            losses[image] = F.cross_entropy(
                self.code_logits(hidden_MD[image]).float(), packed.target_M[image] - v.first_code, reduction="none"
            )
        if not bool(image.all()):
            losses[~image] = F.cross_entropy(
                self.text_logits(hidden_MD[~image]).float(), packed.target_M[~image], reduction="none"
            )
        return losses

    def losses(self, groups: Sequence[Packed]) -> dict[str, Tensor]:
        """Mean nats per target token of each task."""
        sums: dict[int, list[Tensor]] = {}
        for packed in groups:
            losses_M = self.token_losses(packed)
            for task in packed.task_M.unique().tolist():
                sums.setdefault(task, []).append(losses_M[packed.task_M == task])
        return {TASKS[task]: torch.cat(parts).mean() for task, parts in sums.items()}

    def _step(self, batch: Mapping[str, Any], name: str) -> Tensor:
        losses = self.losses(batch["packed"])
        total = sum(self.task_weights[task] for task in losses)
        loss = torch.stack([self.task_weights[task] / total * value for task, value in losses.items()]).sum()
        evaluating: dict[str, Any] = {"sync_dist": True, "add_dataloader_idx": False} if name != "train" else {}
        size = len(batch["studies"])
        nats = {f"{name}/{task}_nats": value.detach() for task, value in losses.items()}
        self.log_dict(nats, batch_size=size, **evaluating)
        self.log(f"{name}/loss", loss.detach(), prog_bar=True, batch_size=size, **evaluating)
        return loss

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self._step(batch, f"val/{self.trainer.datamodule.names[dataloader_idx]}")  # type: ignore[attr-defined]

    def test_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Nothing of its own: the callbacks ask for reports, drawings and answers."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.drift.add_gradient()
        if self.trainer.global_step % max(self.trainer.log_every_n_steps, 1) == 0 and self.drift.weight:  # type: ignore[attr-defined]
            self.log("train/drift_term", self.drift.term())
            self.log_dict({f"drift/{name}": value for name, value in self.drift.per_layer().items() if value > 0})

    def configure_optimizers(self) -> Any:
        h = self.hparams
        return configured(self, self.body, h["optimizer"], h["learning_rate"], h["matrix_rate"], h["warmup"])

    # What it can do. Codes are int64 [B,N]; keys make sampling and wordings independent of the batch.

    def write_reports(self, codes_BN: Tensor) -> list[str]:
        """A report for each image, greedily."""
        prompts = [self.image_prefix(codes) + self.report_prompt("", training=False) for codes in codes_BN.tolist()]
        return self.tokenizer.batch_decode(decoding.write(self, prompts, self.hparams["max_words"]))

    def draw(self, texts: Sequence[str], seed: int = 0, keys: Sequence[int] | None = None) -> Tensor:
        """Codes int64 [B,N] of an image for each text."""
        h = self.hparams
        prompts = [self.draw_prompt(text) for text in texts]
        return decoding.draw(
            self, prompts, self.draw_prompt(None), h["guidance"], h["temperature"], h["top_p"], seed, keys
        )

    @torch.inference_mode()
    def answer(
        self, codes_BN: Tensor, questions: Sequence[Sequence[tuple[str, Sequence[str]]]]
    ) -> list[list[list[float]]]:
        """For each image and question, the likelihood of each candidate answer, per token and normalised over the
        candidates. All of an image's questions are answered in one pass that reads it once."""
        prompt = self.vocabulary.mark("<answer>")
        trees = []
        for codes, asked in zip(codes_BN.tolist(), questions):
            branches = [
                Branch([*self.words(question), prompt], [*self.words(candidate), self.vocabulary.end])
                for question, candidates in asked
                for candidate in candidates
            ]
            trees.append(Tree(self.image_prefix(codes), branches))
        packed = pack(trees, self.vocabulary.end).to(self.device)
        losses_M = self.token_losses(packed)
        branches_count = int(packed.branch_M.max()) + 1
        total = losses_M.new_zeros(branches_count).index_add_(0, packed.branch_M, losses_M)
        length = losses_M.new_zeros(branches_count).index_add_(0, packed.branch_M, torch.ones_like(losses_M))
        likelihood = iter((-total / length).tolist())
        return [
            [torch.tensor([next(likelihood) for _ in candidates]).softmax(0).tolist() for _, candidates in asked]
            for asked in questions
        ]

    @torch.inference_mode()
    def text_nats(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Plain text without images: summed nats and token count of each text, float [B] and int [B]."""
        begin = [self.vocabulary.mark("<begin>")]
        kept = [ids for ids in (self.words(text) for text in texts) if len(ids) > 1]
        packed = pack([Tree([*begin, ids[0]], [Branch([], ids[1:])]) for ids in kept], self.vocabulary.end).to(
            self.device
        )
        losses_M = self.token_losses(packed)
        total = losses_M.new_zeros(len(kept)).index_add_(0, packed.branch_M, losses_M)
        return total, torch.tensor([len(ids) - 1 for ids in kept])
