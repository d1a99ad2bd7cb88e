"""Lightning callbacks: the figures of each task, forgetting, the tokenizer's health, and pictures."""

from mavilt_pl.callbacks.codebook_health import CodebookHealth
from mavilt_pl.callbacks.forgetting import Forgetting
from mavilt_pl.callbacks.pictures import Pictures
from mavilt_pl.callbacks.reconstruction import ReconstructionMetrics
from mavilt_pl.callbacks.report import ReportMetrics
from mavilt_pl.callbacks.synthesis import SynthesisMetrics
from mavilt_pl.callbacks.vqa import VQAMetrics

__all__ = [
    "CodebookHealth",
    "Forgetting",
    "Pictures",
    "ReconstructionMetrics",
    "ReportMetrics",
    "SynthesisMetrics",
    "VQAMetrics",
]
