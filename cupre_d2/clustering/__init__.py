"""Clustering that learns sample by sample, as scikit-learn estimators; nothing here knows Detectron2 or torch."""

from cupre_d2.clustering.growing_neural_gas import GrowingNeuralGas
from cupre_d2.clustering.scheduled import NeuralGas, OnlineKMeans

__all__ = ["GrowingNeuralGas", "NeuralGas", "OnlineKMeans"]
