"""Frozen chest-radiograph encoders behind one interface, and a small classifier to train."""

from mavilt_pl.encoders.findings import Classifier, FindingsNet
from mavilt_pl.encoders.loading import Encoder, load_encoder
from mavilt_pl.encoders.module import CXRClassifier

__all__ = ["CXRClassifier", "Classifier", "Encoder", "FindingsNet", "load_encoder"]
