"""The comparisons: what is run against what, with which settings, and the tables and pictures that come of it."""

from . import autoencoder, blocks, classifier, family, middle_layers, report, script

__all__ = ["autoencoder", "blocks", "classifier", "family", "middle_layers", "report", "script"]
