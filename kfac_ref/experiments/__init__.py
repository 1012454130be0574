"""The comparisons: what is run against what, with which settings, and the tables and pictures that come of it."""

from . import autoencoder, classifier, comparison, family, report, run, script, settings

__all__ = ["autoencoder", "classifier", "comparison", "family", "report", "run", "script", "settings"]
