"""The language model that knows codes as words: vocabulary, sequences, losses, drift, decoding, and
the stages.
"""

from mavilt_pl.language.backbone import Backbone
from mavilt_pl.language.stage1 import Stage1
from mavilt_pl.language.stage2 import Stage2

__all__ = ["Backbone", "Stage1", "Stage2"]
