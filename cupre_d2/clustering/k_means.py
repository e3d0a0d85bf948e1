"""Online k-means (MacQueen 1967), the paper's kMC."""

from typing import Any

import numpy as np
from numba import njit

from cupre_d2.clustering.base import ScheduledClusterer
from cupre_d2.clustering.distances import move, nearest


class OnlineKMeans(ScheduledClusterer):
    """k-means sample by sample: the nearest centroid w of each sample x moves,

        Δw = ε(t) (x − w),   ε(t) = step_start (step_end / step_start)^t,

    and no other. This is the paper's kMC: its neural gas with R ≡ 10⁻³, as then h = exp(−rank / R) is 1 for rank 0 and 0 in
    float64 for all others.

    The paper does not say how centroids start or whether t counts samples or epochs. Here they start at distinct samples
    drawn at random, and t grows with every sample, from 0 to 1 over all epochs.

    Features that are constant have no influence. If all samples are equal, all centroids are, and a ConvergenceWarning says
    so. A single sample is a cluster, with n_clusters=1. A fit of more than 10 s logs its progress (logger
    cupre_d2.clustering.base).

    Args:
        n_clusters: K, at most the number of samples.
        epochs: passes over the samples.
        step_start, step_end: ε at the start and the end, above 0, at most 1.
        init: "random", or K x F start nodes.
        shuffle_data: whether each epoch takes the samples in a random order, or all as they are.
        random_state: seed, generator or None, as everywhere in scikit-learn.

    Attributes:
        cluster_centers_, labels_: see CentroidClusterer.

    Raises (`fit`):
        ClusteringError, a ValueError: n_clusters above the number of samples, NaN or infinity, a parameter out of range.

    >>> samples = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> OnlineKMeans(2, init=[[0.0], [10.0]], random_state=0).fit(samples).labels_.tolist()
    [0, 0, 1, 1]
    """

    def fit(self, X: Any, y: object = None) -> "OnlineKMeans":  # noqa: N803
        """Learns from N x F samples; y is there for scikit-learn's sake."""
        samples = self._checked(X)
        self._fit(samples, lambda centroids, order, steps, _: _adapt(centroids, samples, order, steps))
        return self


@njit(cache=True, nogil=True)
def _adapt(centroids: np.ndarray, samples: np.ndarray, order: np.ndarray, steps: np.ndarray) -> float:
    total = 0.0
    for position in range(len(order)):
        sample = samples[order[position]]
        winner, distance = nearest(sample, centroids)
        total += np.sqrt(distance)
        move(centroids, winner, sample, steps[position])
    return total / len(order)
