"""Frozen chest-radiograph encoders behind one interface, and a small classifier that can be trained
here.
"""

from mavilt_pl.encoders.classifier import CXRClassifier, FindingsNet
from mavilt_pl.encoders.frozen import Encoder, load_encoder

__all__ = ["CXRClassifier", "Encoder", "FindingsNet", "load_encoder"]
