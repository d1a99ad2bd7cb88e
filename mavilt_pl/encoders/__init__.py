"""Frozen chest-radiograph encoders behind one interface, and a small classifier that can be trained
here.
"""

from mavilt_pl.encoders.findings import CXRClassifier, FindingsNet
from mavilt_pl.encoders.loading import Encoder, load_encoder

__all__ = ["CXRClassifier", "Encoder", "FindingsNet", "load_encoder"]
