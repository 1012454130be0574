"""The comparisons: what is run against what, with which settings, and the tables and pictures that come of it."""

from . import autoencoder, blocks, classifier, comparison, family, middle_layers, report, run, script, settings

__all__ = ["autoencoder", "blocks", "classifier", "comparison", "family", "middle_layers", "report", "run", "script",
           "settings"]
