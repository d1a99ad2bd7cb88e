"""Memory of one GPU in a training, by what it is for.

The peak is the larger of two moments. At the end of the forward pass there are weights, optimizer,
θ₀, activations and logits and no gradients; at the optimizer's step there are gradients, and one
scratch copy of them, and no activations. In between gradients grow as activations go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mavilt_pl.planning.transformer import MARKS, Transformer, Tuning

Precision = Literal["32-true", "bf16-mixed"]
W = 4  # bytes of a weight
Strategy = Literal["ddp", "fsdp"]
CHUNK = {"cpu": 2**22, "gpu": 2**26}  # logits held at once: `language.loss.CHUNK`
# Defaults of `vqgan.autoencoder`, `quantizer` and `discriminator`, as far as they decide on memory.
AUTOENCODER: dict[str, Any] = {
    "image_size": 256,
    "channels": 128,
    "channel_multipliers": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "attention_resolutions": (16,),
    "latent_dim": 256,
    "patch": 1,
    "middle_attention": None,
}
QUANTIZER: dict[str, Any] = {"codebook_size": 1024, "code_dim": 8}
DISCRIMINATOR: dict[str, Any] = {"channels": 64, "layers": 3}


@dataclass
class Memory:
    """Bytes, of one GPU. `scratch` is what the optimizer's step needs besides; under FSDP2,
    `gathered` is what a layer needs, and `whole` are the weights that a validation holds.
    """

    parameters: int
    trained: int  # numbers, not bytes
    weights: int
    gradients: int
    optimizer: int
    reference: int
    scratch: int
    gathered: int
    activations: int
    logits: int
    whole: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def forward(self) -> int:
        return (
            self.weights
            + self.optimizer
            + self.reference
            + self.gathered
            + self.activations
            + self.logits
        )

    @property
    def step(self) -> int:
        return self.weights + self.optimizer + self.reference + self.gradients + self.scratch

    @property
    def validation(self) -> int:
        """Without its activations, which are not kept."""
        return self.weights + self.optimizer + self.reference + self.whole

    @property
    def peak(self) -> int:
        return max(self.forward, self.step, self.validation)

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "forward": self.forward,
            "step": self.step,
            "validation": self.validation,
            "peak": self.peak,
        }


@dataclass(frozen=True)
class Step:
    """One batch of one GPU. Lengths are of the longest sequence in it: what the others need at most
    (`length_groups`).

    Args:
        batch: studies.
        codes: N, of an image.
        book: K.
        words: of the report.
        questions, question_words: of a study, in Stage 2; words of question and answer together.
        instruction: words of an instruction, in Stage 2.
        views: two images are read, and one is drawn from the other.
        replayed: plain texts of so many words in a batch (`data.replay`; on average, rounded up).
    """

    batch: int = 16
    codes: int = 256
    book: int = 1024
    words: int = 128
    questions: int = 0
    question_words: int = 16
    instruction: int = 0
    views: bool = False
    replayed: int = 0

    @property
    def reading(self) -> int:
        """Positions of a study's images and all that is said of them."""
        shown = 1 + (2 * (self.codes + 3) if self.views else self.codes + 2)
        return (
            shown
            + self.instruction
            + 1
            + self.words
            + 1
            + self.questions * (self.question_words + 2)
        )

    @property
    def drawing(self) -> int:
        other = self.codes + 4 if self.views else 0  # the other view, and the drawn one's mark
        return 2 + other + self.instruction + self.words + self.codes

    @property
    def replaying(self) -> int:
        return 1 + self.words

    @property
    def positions(self) -> int:
        """Of the whole batch, both directions and what is replayed."""
        return self.batch * (self.reading + self.drawing) + self.replayed * self.replaying


def language(
    model: Transformer,
    step: Step,
    *,
    tuning: Tuning = "full",
    strategy: Strategy = "ddp",
    gpus: int = 1,
    precision: Precision = "bf16-mixed",
    checkpointing: bool = False,
    optimizer: Literal["adamw", "muon"] = "adamw",
    drift: bool = True,
    keep: Literal["bfloat16", "float32"] = "bfloat16",
    place: Literal["device", "host"] = "device",
    places: bool = True,
    rank: int = 16,
    device: Literal["cpu", "gpu"] = "gpu",
) -> Memory:
    """Of Stage 1 (`step.questions` 0) or Stage 2. `keep` and `place` are θ₀'s, as `drift_keep` and
    `drift_place` say.
    """
    A = 4 if precision == "32-true" else 2
    book = step.book + 2 * step.views  # codes, and the marks of views
    added = model.new_rows(book) + (step.codes * model.width if places else 0)
    whole = model.weights + added + (model.adapters(rank) if tuning == "lora" else 0)
    trained = {"full": whole, "lora": added + model.adapters(rank), "new_rows": added}[tuning]
    shards = gpus if strategy == "fsdp" else 1
    moved = model.matrices if optimizer == "muon" and tuning == "full" else 0
    states = W * (2 * (trained - moved) + moved)
    beside = place == "device" or device == "cpu"  # a CPU's own memory is the host's
    held = (
        (4 if keep == "float32" else 2) * model.weights
        if drift and tuning == "full" and beside
        else 0
    )
    buckets = (
        W * trained if strategy == "ddp" and gpus > 1 else 0
    )  # DDP reduces copies of the gradients
    # Autocast keeps its copies of trained weights to the end of the pass; those of fixed ones live
    # in what is saved.
    copies = (
        A * model.matrices
        if precision == "bf16-mixed" and (tuning == "full" or not checkpointing)
        else 0
    )
    layer = model.matrices // model.layers
    one = step.positions * model.saved(tuning, W, A, step.questions > 0)
    blocks = (
        (step.positions * model.width * W * model.layers + one)
        if checkpointing
        else one * model.layers
    )
    ends = step.positions * model.width * (2 * W + A)  # embedding and last norm
    mask = step.batch * step.reading**2 * (W + 1) if step.questions else 0
    said = step.batch * ((step.words + 1) + step.questions * (step.question_words // 2 + 1))
    pictured = step.batch * step.codes
    limit = CHUNK[device]
    saved, most = 0, 0
    replayed = step.replayed * (step.words - 1)
    for targets, rows in (
        (said, model.words + 1),
        (pictured, step.book),
        (replayed, model.words + 1),
    ):
        if targets * rows <= limit:
            saved += 4 * targets * rows
            most = max(most, 4 * targets * rows)
        else:
            most = max(most, 3 * 4 * limit)
    # The head's gradient comes first. Of a tied one three are counted: autograd was seen to hold
    # two parts and their sum for a moment; that this is the moment of the peak was not seen
    # (benchmarks/README.md).
    head = (
        (3 if model.tied else 1) * W * (model.words + MARKS + book) * model.width
        if tuning == "full"
        else 0
    )
    return Memory(
        parameters=whole,
        trained=trained,
        weights=W * whole // shards,
        gradients=(W * trained + buckets) // shards,
        optimizer=states // shards,
        reference=held // shards,
        scratch=W * trained // shards,
        gathered=W * (2 * layer + model.words * model.width) if shards > 1 else 0,
        whole=W * whole if shards > 1 else 0,
        activations=blocks + ends + copies + mask,
        logits=saved + most + head // shards,
        details={
            "reading": step.reading,
            "drawing": step.drawing,
            "positions": step.positions,
            "checkpointing": checkpointing,
        },
    )


class _Walk:
    """Through a network of convolutions: weights, and numbers saved for each image. Activations are
    float32 unless autocast.
    """

    def __init__(self) -> None:
        self.weights = self.saved = 0

    def conv(self, inside: int, outside: int, kernel: int = 3, bias: bool = True) -> None:
        self.weights += inside * outside * kernel**2 + (outside if bias else 0)

    def block(self, inside: int, outside: int, side: int) -> None:
        """norm, swish, convolution, twice: each saves its input."""
        self.weights += 2 * (inside + outside)
        self.conv(inside, outside)
        self.conv(outside, outside)
        if inside != outside:
            self.conv(inside, outside, 1)
        self.saved += 3 * (inside + outside) * side**2

    def attention(self, width: int, side: int) -> None:
        self.weights += 2 * width
        self.conv(width, 3 * width, 1)
        self.conv(width, width, 1)
        self.saved += 7 * width * side**2


def _autoencoder(shape: dict[str, Any]) -> _Walk:
    """`vqgan.autoencoder.Autoencoder`, layer by layer."""
    s = {**AUTOENCODER, **shape}
    walk, size, width = _Walk(), s["image_size"] // s["patch"], s["channels"]
    widths = [s["channels"] * m for m in s["channel_multipliers"]]
    walk.conv(s["patch"] ** 2, width)
    walk.saved += s["image_size"] ** 2
    for level, wide in enumerate(widths):
        for _ in range(s["num_res_blocks"]):
            walk.block(width, wide, size)
            width = wide
            if size in s["attention_resolutions"]:
                walk.attention(width, size)
        if level < len(widths) - 1:
            walk.conv(width, width)
            walk.saved += width * size**2
            size //= 2
    attends = (
        size in s["attention_resolutions"]
        if s["middle_attention"] is None
        else s["middle_attention"]
    )
    for _ in range(2):  # the middles of encoder and decoder
        walk.block(width, width, size)
        if attends:
            walk.attention(width, size)
        walk.block(width, width, size)
    walk.weights += 2 * width
    walk.conv(width, s["latent_dim"])
    walk.conv(s["latent_dim"], width)
    walk.saved += (3 * width + 4 * s["latent_dim"]) * size**2
    for level, wide in reversed(list(enumerate(widths))):
        for _ in range(s["num_res_blocks"] + 1):
            walk.block(width, wide, size)
            width = wide
            if size in s["attention_resolutions"]:
                walk.attention(width, size)
        if level > 0:
            size *= 2
            walk.conv(width, width)
            walk.saved += width * size**2
    walk.weights += 2 * width
    walk.conv(width, s["patch"] ** 2)
    walk.saved += 3 * width * size**2
    return walk


def _discriminator(shape: dict[str, Any], side: int) -> _Walk:
    channels, layers = ({**DISCRIMINATOR, **shape}[key] for key in ("channels", "layers"))
    walk, width = _Walk(), channels
    walk.conv(1, channels, 4)
    walk.saved += side**2 + 2 * channels * (side // 2) ** 2
    side //= 2
    for n in range(1, layers + 1):
        wide = channels * min(2**n, 8)
        side = side // 2 if n < layers else side - 1
        walk.conv(width, wide, 4, bias=False)
        walk.weights += 2 * wide
        walk.saved += 3 * wide * side**2
        width = wide
    walk.conv(width, 1, 4)
    return walk


def _clinical(widths: list[int], side: int) -> _Walk:
    """φ's maps on one image: convolution, norm of a batch, and a ReLU in place, each saving its
    input.
    """
    walk, inside = _Walk(), 1
    for level, wide in enumerate(widths):
        for _ in range(2 if level else 1):
            walk.conv(inside, wide, bias=False)
            walk.weights += 2 * wide
            side_now = side // 2**level
            walk.saved += 2 * wide * side_now**2
            inside = wide
    return walk


def tokenizer(
    settings: Mapping[str, Any],
    batch: int,
    *,
    strategy: Strategy = "ddp",
    gpus: int = 1,
    precision: Precision = "32-true",
    encoder: list[int] | None = None,
) -> Memory:
    """Of a VQGAN with these arguments; `encoder`: channels of φ's levels, where it has one (our
    classifier).
    """
    A = 4 if precision == "32-true" else 2
    net = _autoencoder(settings.get("autoencoder") or {})
    side, latent = (
        {**AUTOENCODER, **(settings.get("autoencoder") or {})}[k]
        for k in ("image_size", "latent_dim")
    )
    code_dim, book = (
        {**QUANTIZER, **(settings.get("quantizer") or {})}[k] for k in ("code_dim", "codebook_size")
    )
    net.weights += 2 * latent * code_dim + latent + code_dim if code_dim != latent else 0
    net.saved += side**2 * 12  # the terms of the loss on pixels
    adversarial = settings.get("gan_weight", 0.8) > 0
    critic = _discriminator(settings.get("discriminator") or {}, side) if adversarial else _Walk()
    compares = settings.get("lambda_feat", 0) > 0 or settings.get("lambda_finding", 0) > 0
    phi = (
        _clinical(encoder or [16, 32, 48, 64], side)
        if compares or settings.get("clinical_input")
        else _Walk()
    )
    trained = net.weights + critic.weights
    buckets = 4 * trained if strategy == "ddp" and gpus > 1 else 0
    copies = 2 * trained if A == 2 else 0
    floats = net.saved + critic.saved + (2 * phi.saved if compares else 0)
    return Memory(
        parameters=trained + phi.weights + book * code_dim,
        trained=trained,
        weights=4 * (trained + phi.weights + 2 * book * code_dim),
        gradients=4 * trained + buckets,
        optimizer=8 * trained,
        reference=0,
        scratch=4 * trained,
        gathered=0,
        activations=batch * A * floats + copies,
        logits=0,
        details={"image": side, "batch": batch},
    )
