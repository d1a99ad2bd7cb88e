"""What Stage 1 and Stage 2 share: losses, logging and the optimizer of a `VisualLanguageModel`.

Shape legend: B studies, M target positions, S tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from torch import Tensor

from mavilt_pl.checkpoint import FORMAT_KEY, FORMAT_VERSION
from mavilt_pl.data.ood_reference import OODReference, to_plain
from mavilt_pl.data.token_cache import TokenCache
from mavilt_pl.errors import UserError
from mavilt_pl.language.flops import peak_flops, step_flops
from mavilt_pl.language.fsdp import FSDPMixin
from mavilt_pl.language.generation import Generator
from mavilt_pl.language.l2_regularization import (
    AdapterL2SPRegularizer,
    L2SPRegularizer,
    Regularizer,
    group_distances,
)
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.optim import configure_optimizer
from mavilt_pl.language.options import (
    TASKS,
    ModelOptions,
    RegularizationOptions,
    SamplingOptions,
    TuningOptions,
    as_options,
    check_options,
)
from mavilt_pl.language.prompt_builder import PromptBuilder
from mavilt_pl.language.prompt_collate import PromptCollate
from mavilt_pl.language.stage_checkpoint import check_stage_checkpoint, read_earlier_stage
from mavilt_pl.language.task_loss import count_targets, span_sums, task_shares
from mavilt_pl.language.training_step import TrainingStep
from mavilt_pl.parallel.distributed import all_reduce_sum

HALF_PRECISIONS = ("bf16-mixed", "bf16-true")


class LanguageModule(TrainingStep, FSDPMixin, LightningModule):
    """Trains a `VisualLanguageModel` on image → text and text → image sequences.

    The prompts are built in the loader's workers (`PromptCollate`); `generator` decodes.

    Args:
        backbone: folder or hub name of a pretrained causal language model.
        tokens: a token cache of the visual tokenizer; its codebook shapes the new rows.
        init_from: checkpoint whose weights to start from (for Stage 2: Stage 1's). A checkpoint
            trained in full may be tuned on with adapters or new rows; its weights are then fixed.
        model: how images enter the language model.
        tuning: which weights are trained, on which tasks, and how fast.
        regularization: what keeps the pretrained language.
        sampling: how images and text are generated.

    Raises:
        UserError: settings are out of range, or the parts do not fit one another.
    """

    instructed: ClassVar[bool] = False  # whether reports and images get instructions

    def __init__(
        self,
        backbone: str,
        tokens: str,
        init_from: str | None = None,
        model: ModelOptions = ModelOptions(),
        tuning: TuningOptions = TuningOptions(),
        regularization: RegularizationOptions = RegularizationOptions(),
        sampling: SamplingOptions = SamplingOptions(),
    ):
        super().__init__()
        options = as_options(ModelOptions, model, "model")
        self.tuning = as_options(TuningOptions, tuning, "tuning")
        self.regularization = as_options(RegularizationOptions, regularization, "regularization")
        sampling = as_options(SamplingOptions, sampling, "sampling")
        check_options(options, self.tuning, self.regularization, sampling)
        # Plain dictionaries, not dataclasses: checkpoints are read with `weights_only`, which
        # refuses other classes. `_class_path` lets a checkpoint of a plain Trainer say which module
        # it is of.
        settings = {
            "backbone": backbone,
            "tokens": tokens,
            "init_from": init_from,
            "model": asdict(options),
            "tuning": asdict(self.tuning),
            "regularization": asdict(self.regularization),
            "sampling": asdict(sampling),
            "_class_path": f"{type(self).__module__}.{type(self).__qualname__}",
        }
        self.save_hyperparameters(settings)
        cache = TokenCache(tokens)
        self.visual_tokenizer: str = cache.tokenizer  # sha256 of its checkpoint
        self.visual_tokenizer_path = cache.tokenizer_path
        self.model = self._load_model(cache, options)
        self.prompts = PromptBuilder(
            self.model.vocabulary,
            self.model.tokenizer,
            self.model.max_context,
            self.instructed,
            options,
            self.tuning,
            self.regularization,
        )
        # Before training, since one long study in a later epoch would stop it.
        self._check_context(backbone)
        # A question is as long as a text at most.
        longest = self.prompts.longest_pair() + options.max_text_tokens
        shares_prefix = self.model.can_share_prefix(longest)
        self.generator = Generator(self.model, self.prompts, sampling, shares_prefix)
        self.collate = PromptCollate(self.prompts, shares_prefix, self.tuning.length_groups)
        # Not part of a checkpoint: a resumed run counts from its resumption on.
        self.event_counts: Counter[str] = Counter()  # truncated and empty texts
        # θ₀ is copied from the weights as they are at this moment, so the order matters: before
        # `init_from` for the backbone, after it for the stage.
        if self.regularization.reference == "backbone":
            self.regularizer = self._build_regularizer()
        if init_from is not None:
            self._start_from(init_from)
        if self.regularization.reference == "stage":
            self.regularizer = self._build_regularizer()

    def _load_model(self, cache: TokenCache, options: ModelOptions) -> VisualLanguageModel:
        """The backbone with its initial new rows."""
        codebook = torch.from_numpy(cache.codebook())
        codes_per_image = cache.codes_per_image
        name = self.hparams["backbone"]
        return VisualLanguageModel.from_pretrained(
            name, codebook, codes_per_image, options, self.tuning
        )

    def _start_from(self, path: str) -> None:
        checkpoint = read_earlier_stage(path, self)
        # The same checks as for a resumed run.
        self.on_load_checkpoint(checkpoint)
        self.load_state_dict(checkpoint["state_dict"])

    def _check_context(self, backbone: str) -> None:
        needed, context = self.prompts.longest_pair(), self.model.max_context
        if context is not None and needed > context:
            images = "two images" if self.model.vocabulary.multi_view else "an image"
            raise UserError(
                f"backbone {backbone}: found a context of {context} positions; {images} of "
                f"{self.model.vocabulary.codes_per_image} codes and a text of max_text_tokens = "
                f"{self.prompts.max_text_tokens} need {needed}. Lower max_text_tokens, or use a "
                "model of longer context or a tokenizer of fewer codes"
            )

    def _build_regularizer(self) -> Regularizer:
        # With new rows alone no pretrained weight moves, so λ is 0 there.
        options, method = self.regularization, self.tuning.method
        if method == "lora":
            return AdapterL2SPRegularizer(self.model.backbone, options.lambda_reg)
        return L2SPRegularizer(
            self.model.backbone,
            options.lambda_reg if method == "full" else 0.0,
            self.model.vocabulary.num_text_rows,
            options.reference_dtype,
            options.reference_device,
        )

    def initial_generator(self) -> Generator | None:
        """A generator of the model before any stage: the backbone and the initial new rows.

        None if the backbone started from random weights and has nothing to forget.
        """
        if not self.model.options.pretrained:
            return None
        cache = TokenCache(self.hparams["tokens"])
        # Loaded again, which takes the memory of a second model while it is used: keeping a copy
        # would take it for the whole training. Its new rows are the same, since their noise has a
        # fixed seed.
        model = self._load_model(cache, self.model.options)
        model = model.to(self.device, next(self.model.parameters()).dtype).eval()
        mine = self.generator
        return Generator(model, self.prompts, mine.sampling, mine.shares_prefix)

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add what a later stage or `mavilt report` must check before it uses the weights."""
        checkpoint[FORMAT_KEY] = FORMAT_VERSION
        checkpoint["visual_tokenizer"] = self.visual_tokenizer
        checkpoint["visual_tokenizer_path"] = self.visual_tokenizer_path
        checkpoint["visual_vocabulary"] = asdict(self.model.vocabulary)
        # So that whoever uses the weights can see whether an image is like the training's.
        checkpoint["ood_references"] = to_plain(self._ood_references())
        # For the card of an exported model.
        if hasattr(self._datamodule, "training_data"):
            checkpoint["training_data"] = self._datamodule.training_data()

    @property
    def _datamodule(self) -> Any:
        """The trainer's datamodule; None without one."""
        return getattr(self._trainer, "datamodule", None)

    def _ood_references(self) -> list[OODReference]:
        """Of the datasets that are trained on; without a datamodule that of the settings."""
        # A datamodule of somebody else's has none.
        caches = getattr(self._datamodule, "token_caches", None)
        references = []
        for cache in caches or [TokenCache(self.hparams["tokens"])]:
            references += cache.ood_references()
        return references

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse the checkpoint of another model, tokenizer or format."""
        check_stage_checkpoint(checkpoint, self)

    # Batches.

    def setup(self, stage: str) -> None:
        """Let the loader's workers build the prompts."""
        if self._datamodule is not None:
            # Lightning calls `setup` before it asks for loaders.
            self._datamodule.collate_fn = self.collate

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Build the prompts of a batch that came without them."""
        # For batches of a loader that does not use `self.collate`. A test needs no sequences:
        # metric callbacks build the prompts that they generate from.
        testing = self._trainer is not None and self._trainer.testing
        if "packed" not in batch and not testing:
            self.collate.add_packed(batch, self.training)
        return batch

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move tensors and packed sequences; leave the studies' records."""
        # Lightning's default would also walk through every record of the studies.
        moved = dict(batch)
        for key, value in batch.items():
            if isinstance(value, Tensor):
                moved[key] = value.to(device, non_blocking=True)
        if "packed" in batch:
            moved["packed"] = [group.to(device) for group in batch["packed"]]
        return moved

    # Losses.

    def on_validation_epoch_start(self) -> None:
        """Start the sums of each source at zero."""
        names = self.trainer.datamodule.names
        self._validation_sums = torch.zeros(len(names), 2, len(TASKS), device=self.device)

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the sums of its source."""
        sums_2S = self._validation_sums[dataloader_idx]
        passes = self.packed_passes(batch)
        # Only summed here; ranks meet once per epoch, not once per batch.
        for packed in passes:
            for task, nats in span_sums(self.model.token_losses(packed), packed):
                sums_2S[0, TASKS.index(task)] += nats
        for task_index, count in enumerate(count_targets(passes)):
            sums_2S[1, task_index] += count

    def on_validation_epoch_end(self) -> None:
        """Log nats per token of each source, over all its targets, batches and ranks."""
        names = self.trainer.datamodule.names
        sums = all_reduce_sum(self._validation_sums).tolist()
        for name, (nats, counts) in zip(names, sums):
            # Over all tokens, so the figure depends neither on the batch size nor on the ranks.
            means = {}
            for task, total, count in zip(TASKS, nats, counts):
                if count:
                    means[task] = total / count
                    self.log(f"val/{name}/{task}_nats", means[task], sync_dist=True)
            shares = task_shares(dict(zip(TASKS, counts)), self.tuning)
            if shares:
                loss = sum(share * means[task] for task, share in shares.items())
                self.log(f"val/{name}/loss", loss, prog_bar=True, sync_dist=True)

    def on_test_start(self) -> None:
        """Decode in the precision that is asked for: with bf16, weights of bfloat16."""
        # Callbacks decode outside the context in which Lightning casts a step.
        self._weights_before_test = None
        if self.trainer.precision in HALF_PRECISIONS:
            self._weights_before_test = [weight.data.cpu() for weight in self.model.parameters()]
            self.model.to(torch.bfloat16)

    def on_test_end(self) -> None:
        """Take the trained weights again, to the bit."""
        if self._weights_before_test is not None:
            for weight, before in zip(self.model.parameters(), self._weights_before_test):
                weight.data = before.to(weight.device)

    def test_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Do nothing: metric callbacks ask for reports, images and answers."""

    # Optimization.

    def batch_flops(self, batch: Mapping[str, Any]) -> float:
        """Model FLOPs of a batch of this rank, forward and backward; see `flops`."""
        return step_flops(self.model, self.packed_passes(batch))

    @cached_property
    def peak_flops(self) -> float | None:
        """Peak FLOP/s of the device; None if it is not known."""
        return peak_flops(self.device)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Add the gradient of L2-SP, once a step and before clipping; log the distances."""
        # Lightning calls this after accumulation and unscaling, and before clipping: the term is
        # added once a step, and is clipped with the rest of the gradient.
        self.regularizer.add_gradient()
        # The distances are another pass over all weights, so only at steps that are logged.
        if self.regularizer.lambda_reg and self.logs_this_step:
            distances = self.regularizer.distances()
            self.log("train/l2_reg", self.regularizer.term(distances))
            groups = group_distances(distances)
            self.log_dict({f"weight_distance/{group}": d for group, d in groups.items()})

    def configure_optimizers(self) -> Any:
        """AdamW or Muon with a warm-up and a cosine; see `optim`."""
        return configure_optimizer(self, self.model.transformer, self.tuning)
