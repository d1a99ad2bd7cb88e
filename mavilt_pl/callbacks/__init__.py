"""Lightning callbacks: metrics of each task, forgetting, the tokenizer's health, and images."""

from mavilt_pl.callbacks.classifier_metrics import ClassifierMetrics
from mavilt_pl.callbacks.codebook_health import CodebookHealth
from mavilt_pl.callbacks.reconstruction_metrics import ReconstructionMetrics
from mavilt_pl.callbacks.report_metrics import ReportMetrics
from mavilt_pl.callbacks.synthesis_metrics import SynthesisMetrics
from mavilt_pl.callbacks.tensorboard_images import Pictures
from mavilt_pl.callbacks.text_perplexity import Forgetting
from mavilt_pl.callbacks.vqa_metrics import VQAMetrics

__all__ = [
    "ClassifierMetrics",
    "CodebookHealth",
    "Forgetting",
    "Pictures",
    "ReconstructionMetrics",
    "ReportMetrics",
    "SynthesisMetrics",
    "VQAMetrics",
]
