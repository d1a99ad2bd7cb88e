"""The language model that reads and writes image codes: model, prompts, generation, stages."""

from mavilt_pl.language.generation import Generator
from mavilt_pl.language.model import VisualLanguageModel
from mavilt_pl.language.options import (
    ImageSampling,
    LoraOptions,
    ModelOptions,
    RegularizationOptions,
    SamplingOptions,
    TextSampling,
    TuningOptions,
)
from mavilt_pl.language.prompt_builder import PromptBuilder
from mavilt_pl.language.stage1 import Stage1
from mavilt_pl.language.stage2 import Stage2
from mavilt_pl.language.text_pretraining import Backbone

__all__ = [
    "Backbone",
    "Generator",
    "ImageSampling",
    "LoraOptions",
    "ModelOptions",
    "PromptBuilder",
    "RegularizationOptions",
    "SamplingOptions",
    "Stage1",
    "Stage2",
    "TextSampling",
    "TuningOptions",
    "VisualLanguageModel",
]
