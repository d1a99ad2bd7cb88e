"""Settings of the language stages, in four groups: model, tuning, regularization, sampling.

A config gives them as `model.init_args.<group>.<key>`; the command line as
`--model.<group>.<key> VALUE`. Sources of defaults: LLM-CXR (arXiv 2305.11490, appendix A) unless a
docstring names another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from mavilt_pl.errors import UserError
from mavilt_pl.ranges import (
    Decay,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveProbability,
    Probability,
    Size,
    check_arguments,
)

# The order is the index in `PackedBatch.task_M`; "text" is plain text without an image.
TASKS = ("report", "synthesis", "vqa", "text")

Attention = Literal["sdpa", "flash_attention_2", "eager"]
Options = TypeVar("Options")


@dataclass(frozen=True)
class ModelOptions:
    """How images enter the language model.

    Args:
        max_text_tokens: texts are truncated to this many tokens, in targets and in prompts; the
            number of truncated texts is logged.
        grid_positions: add a learned vector for a code's position on the grid, zero at the start.
        multi_view: read a study's frontal and lateral image in one prompt, and generate either from
            the other and the text (with `data.each_view`).
        loss_vocabulary: `modality` normalises a text target over the old vocabulary and `<end>`,
            and an image target over the codes; `full` normalises both over all rows (LLM-CXR).
        attention: attention kernel of transformers. flash_attention_2 takes no custom masks, so
            questions cannot share their image's prefix.
        pretrained: false takes only the backbone's architecture and tokenizer, with random weights.
    """

    max_text_tokens: Size = 128
    grid_positions: bool = True
    multi_view: bool = False
    loss_vocabulary: Literal["modality", "full"] = "modality"
    attention: Attention = "sdpa"
    pretrained: bool = True


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (LoRA, arXiv 2106.09685); defaults of QLoRA (arXiv 2305.14314).

    Args:
        rank: r of the adapters.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: of the adapter's input.
        targets: layers that get an adapter, as peft's `target_modules`.
    """

    rank: Size = 16
    alpha: PositiveFloat = 32.0
    dropout: Decay = 0.05
    targets: str | list[str] = "all-linear"


@dataclass(frozen=True)
class TuningOptions:
    """Which weights are trained, on which tasks, and how fast.

    Args:
        method: `full`; `lora` trains adapters and the new rows; `new_rows` trains only the rows of
            special tokens and codes. With the last two the pretrained weights stay fixed, and a
            learning rate of 1e-4 to 2e-4 is usual.
        lora: with `method: lora`.
        task_weights: each task's share of a step's loss, whatever its length. Weights are
            renormalised over the tasks present in each global batch, so a task that few batches
            contain has less total weight. `text` is plain text from `data.replay`.
        directions: train `both` directions of each pair, or `one`, chosen by a stable hash of the
            study's identifier, as LLM-CXR chooses by its parity.
        length_groups: sequences of one direction are read in up to this many passes of similar
            length. Loss and gradient equal those of one pass; a step needs the memory of its
            largest pass.
        optimizer: adamw, or muon for a backbone that has learned little yet (`optim.py`).
        learning_rate: of AdamW.
        matrix_learning_rate: of Muon, for the weight matrices.
        warmup_steps: linear warm-up, then a cosine down to a hundredth.
        gradient_checkpointing: recompute each layer's activations in the backward pass.
    """

    method: Literal["full", "lora", "new_rows"] = "full"
    lora: LoraOptions = field(default_factory=LoraOptions)
    task_weights: dict[str, NonNegativeFloat] | None = None
    directions: Literal["both", "one"] = "both"
    length_groups: PositiveInt = 3
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 5e-6
    matrix_learning_rate: PositiveFloat = 0.02
    warmup_steps: NonNegativeInt = 50
    gradient_checkpointing: bool = False

    def task_weight(self, task: str) -> float:
        """Weight of a task; 1 if the setting does not name it."""
        return (self.task_weights or {}).get(task, 1.0)


@dataclass(frozen=True)
class RegularizationOptions:
    """What keeps the pretrained language, and what training drops at random.

    Args:
        lambda_reg: λ of λ/2 ‖θ − θ₀‖² over the pretrained weights (L2-SP, arXiv 1802.01483).
            Default of Transfer-Learning-Library's `delta.py`.
        reference: θ₀ is the `backbone`, or the weights at the start of this `stage`. With adapters
            the term covers what they add to the weights; with new rows alone there is none.
        reference_dtype: bfloat16 costs 2 bytes a weight and is exact for models published so;
            float32 costs 4 bytes.
        reference_device: keep θ₀ on the weights' `device` or in the `host`'s memory.
        condition_dropout: probability that an image is trained without its text, so that
            classifier-free guidance can be used (arXiv 2207.12598).
        view_dropout: probability, in training, that a view is left out of a prompt; one view always
            stays if there is nothing else to read.
    """

    lambda_reg: NonNegativeFloat = 0.01
    reference: Literal["backbone", "stage"] = "backbone"
    reference_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    reference_device: Literal["device", "host"] = "device"
    condition_dropout: Probability = 0.1
    view_dropout: Probability = 0.3


@dataclass(frozen=True)
class ImageSampling:
    """How the codes of an image are sampled.

    Args:
        guidance_scale: s of classifier-free guidance on logits, u + s (c − u) (arXiv 2207.12598);
            1 is off.
        temperature: 0 takes the most likely code.
        top_k: sample among the k most likely codes; 0 for all.
        top_p: nucleus sampling (arXiv 1904.09751).
        compile: sample with a key-value cache of fixed size and a compiled step, on a GPU a CUDA
            graph: faster images, after a compilation for each batch size.
    """

    guidance_scale: NonNegativeFloat = 1.0
    temperature: NonNegativeFloat = 1.0
    top_k: NonNegativeInt = 0
    top_p: PositiveProbability = 0.92
    compile: bool = False


@dataclass(frozen=True)
class TextSampling:
    """How text is decoded; greedy by default.

    Args:
        num_beams: beams of beam search (R2Gen and CvT2DistilGPT2 use 3 and 4). Beams are searched,
            not sampled: set either beams or a temperature.
        length_penalty: power of the length that a beam's log-likelihood is divided by.
        temperature: 0 takes the most likely token.
        top_k: sample among the k most likely tokens; 0 for all.
        top_p: nucleus sampling (arXiv 1904.09751).
    """

    num_beams: Size = 1
    length_penalty: FiniteFloat = 1.0
    temperature: NonNegativeFloat = 0.0
    top_k: NonNegativeInt = 0
    top_p: PositiveProbability = 1.0


@dataclass(frozen=True)
class SamplingOptions:
    """How images and text are generated."""

    image: ImageSampling = field(default_factory=ImageSampling)
    text: TextSampling = field(default_factory=TextSampling)


def as_options(
    kind: type[Options], value: Options | Mapping[str, Any] | None, name: str
) -> Options:
    """The settings as a dataclass, from a dataclass, a mapping of a checkpoint, or None.

    Raises:
        UserError: a key is unknown, or a value of a mapping is out of its range.
    """
    # jsonargparse passes a dataclass, Python code may pass None, a checkpoint holds mappings.
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: found {str(value)[:80]!r}; expected a mapping of settings")
    defaults = kind()
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, setting in value.items():
        if key not in known:
            raise UserError(f"{name}: unknown key {key}; the keys are {', '.join(known)}")
        default = getattr(defaults, key)
        # One level of nesting: `tuning.lora`, `sampling.image`, `sampling.text`.
        if is_dataclass(default):
            setting = as_options(type(default), setting, f"{name}.{key}")
        given[key] = setting
    # jsonargparse has checked what it passes; nothing has checked a checkpoint.
    check_arguments(kind, given, name)
    return kind(**given)


def check_options(
    model: ModelOptions,
    tuning: TuningOptions,
    regularization: RegularizationOptions,
    sampling: SamplingOptions,
) -> None:
    """Refuse settings that are out of range or contradict one another.

    Raises:
        UserError: names the key, what was found and what is expected.
    """
    # Also for Python code, which no config parser has checked.
    check_arguments(ModelOptions, vars(model), "model")
    check_arguments(TuningOptions, vars(tuning), "tuning")
    check_arguments(RegularizationOptions, vars(regularization), "regularization")
    # What a range cannot say: values that contradict one another.
    _check_task_weights(tuning)
    if tuning.method != "lora" and tuning.lora != LoraOptions():
        raise UserError(
            f"tuning.lora is set and tuning.method is {tuning.method}: set tuning.method to lora, "
            "or drop tuning.lora"
        )
    check_image_sampling(sampling.image)
    check_text_sampling(sampling.text)


def _check_task_weights(tuning: TuningOptions) -> None:
    # A misspelt task would otherwise be ignored, and the real one keep its weight of 1.
    unknown = sorted(set(tuning.task_weights or ()) - set(TASKS))
    if unknown:
        raise UserError(
            f"tuning.task_weights: unknown task {unknown[0]}; the tasks are {', '.join(TASKS)}"
        )
    weights = {task: tuning.task_weight(task) for task in TASKS}
    if not (min(weights.values()) >= 0 and sum(weights.values()) > 0):
        raise UserError(
            f"tuning.task_weights: found {weights}; expected 0 or more of each, and one above 0"
        )


def check_image_sampling(sampling: ImageSampling) -> None:
    """Refuse settings that images cannot be sampled with.

    Raises:
        UserError: a value is out of range.
    """
    check_arguments(ImageSampling, vars(sampling), "sampling.image")


def check_text_sampling(sampling: TextSampling) -> None:
    """Refuse settings that text cannot be decoded with.

    Raises:
        UserError: a value is out of range, or contradicts another.
    """
    name = "sampling.text"
    check_arguments(TextSampling, vars(sampling), name)
    # transformers would sample within the beams; no paper of this field does.
    if sampling.num_beams > 1 and sampling.temperature > 0:
        raise UserError(
            f"{name}: num_beams and temperature are both set; beams are searched, not sampled: "
            "drop one"
        )
    # Greedy decoding ignores top_k and top_p, so the user would believe to have sampled.
    if sampling.temperature == 0 and (sampling.top_k, sampling.top_p) != (0, 1):
        raise UserError(
            f"{name}: found top_k {sampling.top_k}, top_p {sampling.top_p} and temperature 0, "
            "which samples nothing: set temperature (1 is the model's own), or drop them"
        )
