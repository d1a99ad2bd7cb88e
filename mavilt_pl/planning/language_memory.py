"""Memory of a training of Stage 1 or Stage 2."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from mavilt_pl.language.chunked_cross_entropy import ACCELERATOR_CHUNKS, CHUNK
from mavilt_pl.language.options import ModelOptions, RegularizationOptions, TuningOptions
from mavilt_pl.language.vocabulary import SPECIAL_TOKENS, VIEW_TOKENS
from mavilt_pl.planning.batch_shape import BatchShape
from mavilt_pl.planning.memory import FLOAT32, Hardware, Memory
from mavilt_pl.planning.transformer import Transformer

STRATEGY_NAMES = {"ddp": "DDP", "fsdp": "FSDP2"}
# What a user would try next if a training does not fit: strategy, method, checkpointing.
ALTERNATIVES: tuple[tuple[Literal["ddp", "fsdp"], Literal["full", "lora"], bool], ...] = (
    ("ddp", "full", False),
    ("ddp", "full", True),
    ("fsdp", "full", True),
    ("ddp", "lora", False),
    ("ddp", "lora", True),
)
H100_FLOPS = 989e12  # dense bf16 FLOP/s of an H100 SXM (NVIDIA's data sheet)


@dataclass(frozen=True)
class Training:
    """One training of a language stage.

    Args:
        transformer: shape of the backbone.
        batch: lengths of one GPU's sequences.
        hardware: what it runs on.
        model, tuning, regularization: as `mavilt fit` reads them.
    """

    transformer: Transformer
    batch: BatchShape = field(default_factory=BatchShape)
    hardware: Hardware = field(default_factory=Hardware)
    model: ModelOptions = field(default_factory=ModelOptions)
    tuning: TuningOptions = field(default_factory=TuningOptions)
    regularization: RegularizationOptions = field(default_factory=RegularizationOptions)

    @property
    def name(self) -> str:
        """Strategy and method, as a column's head.

        >>> from mavilt_pl.planning.transformer import PUBLISHED
        >>> Training(PUBLISHED["7"]).name
        'DDP, full'
        """
        parts = [STRATEGY_NAMES[self.hardware.strategy], self.tuning.method]
        if self.tuning.gradient_checkpointing:
            parts.append("checkpointing")
        return ", ".join(parts)

    @property
    def new_tokens(self) -> int:
        """Rows that the vocabulary grows by: special tokens, codes, and tokens of views."""
        rows = len(SPECIAL_TOKENS) + self.batch.codebook_size
        if self.batch.multi_view:
            rows += len(VIEW_TOKENS)
        return rows

    @property
    def added_weights(self) -> int:
        """Weights of the new rows and of the codes' positions on the grid."""
        added = self.transformer.row_weights(self.new_tokens)
        if self.model.grid_positions:
            added += self.batch.codes_per_image * self.transformer.hidden_size
        return added

    @property
    def parameters(self) -> int:
        """All weights, trained or not."""
        total = self.transformer.weights + self.added_weights
        if self.tuning.method == "lora":
            total += self.transformer.adapter_weights(self.tuning.lora.rank)
        return total

    @property
    def trained(self) -> int:
        """Weights that get gradients."""
        if self.tuning.method == "full":
            return self.parameters
        if self.tuning.method == "lora":
            return self.added_weights + self.transformer.adapter_weights(self.tuning.lora.rank)
        return self.added_weights


def plan_language(training: Training) -> Memory:
    """Memory of Stage 1 (a batch without questions) or Stage 2."""
    hardware, transformer, batch = training.hardware, training.transformer, training.batch
    shards = hardware.shards
    parameters, trained = training.parameters, training.trained
    gathered, whole = 0, 0
    if shards > 1:
        # The running layer, the next one, which FSDP2 gathers meanwhile, and the root's embedding.
        layer = transformer.matrix_weights // transformer.num_layers
        embedding = transformer.vocab_size * transformer.hidden_size
        gathered = FLOAT32 * (2 * layer + embedding)
        # In evaluation the weights stay whole: texts end unevenly, and a gather needs all ranks
        # (`language.fsdp`).
        whole = FLOAT32 * parameters
    gradients = (FLOAT32 * trained + hardware.bucket_bytes(trained)) // shards
    activations, following = _activation_bytes(training)
    return Memory(
        parameters=parameters,
        trained=trained,
        weights=FLOAT32 * parameters // shards,
        gradients=gradients,
        optimizer=_optimizer_bytes(training) // shards,
        reference=_reference_bytes(training) // shards,
        scratch=FLOAT32 * trained // shards,
        gathered=gathered,
        activations=activations,
        logits=_logit_bytes(training) + _head_gradient_bytes(training) // shards,
        whole=whole,
        # With shards the passes of a step go backward together (`language.training_step`).
        following=following + gradients if shards == 1 else 0,
        details={
            "reading_length": batch.reading_length,
            "synthesis_length": batch.synthesis_length,
            "positions": batch.positions,
            "checkpointing": training.tuning.gradient_checkpointing,
        },
    )


def _optimizer_bytes(training: Training) -> int:
    """AdamW keeps two moments of a weight; Muon keeps one, of the blocks' matrices alone."""
    tuning, by_muon = training.tuning, 0
    # Adapters are low-rank already, so Muon's orthogonal steps are for full tuning only.
    if tuning.optimizer == "muon" and tuning.method == "full":
        by_muon = training.transformer.matrix_weights
    return FLOAT32 * (2 * (training.trained - by_muon) + by_muon)


def _reference_bytes(training: Training) -> int:
    """θ₀, a second copy of the backbone's weights."""
    regularization = training.regularization
    # With adapters the distance to θ₀ is what the adapters add, so no copy is needed.
    if regularization.lambda_reg == 0 or training.tuning.method != "full":
        return 0
    # On a CPU the host's memory is the memory that is planned.
    if regularization.reference_device == "host" and training.hardware.device != "cpu":
        return 0
    bytes_each = FLOAT32 if regularization.reference_dtype == "float32" else 2
    return bytes_each * training.transformer.weights


def _activation_bytes(training: Training) -> tuple[int, int]:
    """What autograd saves in the largest pass and in the next one, with autocast's copies.

    With shards the passes of a step are one, and there is no next one.
    """
    transformer, tuning = training.transformer, training.tuning
    # The largest goes first, and meets no gradients; the next one meets those of all weights.
    passes = []
    for number, positions in enumerate(training.batch.passes):
        # Questions are branches of one prefix, which need a mask; they are in the first pass.
        masked = number == 0 and training.batch.questions > 0
        passes.append(_pass_bytes(training, positions, masked))
    # Autocast caches its copies of trained weights until the forward pass ends. Copies of fixed
    # weights live only as long as a saved tensor refers to them, which checkpointing avoids.
    copies = 0
    mixed = training.hardware.precision == "bf16-mixed"
    if mixed and (tuning.method == "full" or not tuning.gradient_checkpointing):
        copies = training.hardware.matmul_bytes * transformer.matrix_weights
    if training.hardware.shards > 1:
        return sum(passes) + copies, 0
    largest, following, *_ = sorted(passes, reverse=True)
    return largest + copies, following + copies


def _pass_bytes(training: Training, positions: int, masked: bool) -> int:
    """What autograd saves in one forward pass."""
    transformer, batch, tuning = training.transformer, training.batch, training.tuning
    matmul_bytes = training.hardware.matmul_bytes
    one_layer = positions * transformer.activation_bytes(
        tuning.method, FLOAT32, matmul_bytes, masked
    )
    if tuning.gradient_checkpointing:
        # Each layer keeps its input; in the backward pass one layer at a time is whole again.
        inputs = positions * transformer.hidden_size * FLOAT32 * transformer.num_layers
        layers = inputs + one_layer
    else:
        layers = one_layer * transformer.num_layers
    # Output of the embedding, and input and output of the last norm.
    ends = positions * transformer.hidden_size * (2 * FLOAT32 + matmul_bytes)
    # A bool and a float32 for each pair of positions.
    mask = batch.batch_size * batch.reading_length**2 * (FLOAT32 + 1) if masked else 0
    return layers + ends + mask


def _logit_bytes(training: Training) -> int:
    """Logits of the three kinds of targets, in float32.

    Few logits are computed at once and saved. More are computed in chunks, which are freed:
    `language.chunked_cross_entropy`.
    """
    transformer, batch = training.transformer, training.batch
    limit = CHUNK
    if training.hardware.device == "gpu":
        limit = CHUNK * ACCELERATOR_CHUNKS
    # The loss of a text is normalised over the old vocabulary and <end>.
    text_rows = transformer.vocab_size + 1
    targets_and_rows = (
        (batch.text_targets, text_rows),
        (batch.code_targets, batch.codebook_size),
        (batch.replay_targets, text_rows),
    )
    saved, largest = [0], 0
    for targets, rows in targets_and_rows:
        if targets * rows <= limit:
            # The log-softmax is saved; the logits live for a moment.
            saved.append(FLOAT32 * targets * rows)
            largest = max(largest, FLOAT32 * targets * rows)
        else:
            # A chunk's logits and two temporaries of their size.
            largest = max(largest, 3 * FLOAT32 * limit)
    # Each kind is of a pass of its own.
    return (sum(saved) if training.hardware.shards > 1 else max(saved)) + largest


def _head_gradient_bytes(training: Training) -> int:
    """The head's gradient, which the backward pass computes first, next to all activations."""
    transformer = training.transformer
    if training.tuning.method != "full":
        return 0
    # Of a tied head three are counted: autograd was seen to hold two parts and their sum for a
    # moment. That this moment is the peak was not seen (benchmarks/README.md); counted once, the
    # plan was 0.89 of the measured memory, counted three times 0.92.
    copies = 3 if transformer.tied else 1
    rows = transformer.vocab_size + training.new_tokens
    return copies * FLOAT32 * rows * transformer.hidden_size


def plan_alternatives(training: Training) -> dict[str, Memory]:
    """Memory of a training, followed by the usual alternatives to it, by name.

    FSDP2 is an alternative only with more than one GPU.
    """
    plans = {training.name: plan_language(training)}
    for strategy, method, checkpointing in ALTERNATIVES:
        if strategy == "fsdp" and training.hardware.gpus == 1:
            continue
        other = replace(
            training,
            hardware=replace(training.hardware, strategy=strategy),
            tuning=replace(training.tuning, method=method, gradient_checkpointing=checkpointing),
        )
        if other.name not in plans:
            plans[other.name] = plan_language(other)
    return plans


def throughput(plan: Memory, mfu: float, gpus: int) -> float:
    """Positions per second of H100s.

    A position costs 6 FLOP a weight, of which 2 are the forward pass's (Kaplan et al., arXiv
    2001.08361). Fixed weights need no gradient of their own, which saves 2. Checkpointing is a
    second forward pass.

    Args:
        plan: of a language stage.
        mfu: model FLOP utilisation, the share of the peak FLOP/s that is reached.
        gpus: of all nodes together.
    """
    flops = 4 * plan.parameters + 2 * plan.trained
    if plan.details["checkpointing"]:
        flops += 2 * plan.parameters
    return gpus * mfu * H100_FLOPS / flops
