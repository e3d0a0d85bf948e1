"""Clusterers of K centroids whose step decays over the fit: online k-means (MacQueen 1967), the paper's kMC, and neural gas
(Martinetz, Berkovich and Schulten, IEEE Transactions on Neural Networks 1993).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from sklearn.utils import check_random_state

from cupre_d2.clustering.base import CentroidClusterer, Progress, decay, is_number, is_whole, require
from cupre_d2.clustering.distances import assign, move, nearest, rank, squared_distance
from cupre_d2.errors import ClusteringError

# exp(-REACH) is 2^-53: what is nearer than REACH · R in rank alone can move a centroid by more than rounding does.
REACH = 53 * np.log(2.0)


class ScheduledClusterer(CentroidClusterer):
    """K centroids and a step that decays over the whole fit.

    The paper does not say how centroids start or whether t counts samples or epochs. Here they start at distinct samples
    drawn at random, and t grows with every sample, from 0 to 1 over all epochs, as published by Martinetz.

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
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        epochs: int = 200,
        step_start: float = 0.1,
        step_end: float = 1e-4,
        init: Any = "random",
        shuffle_data: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.epochs = epochs
        self.step_start = step_start
        self.step_end = step_end
        self.init = init
        self.shuffle_data = shuffle_data
        self.random_state = random_state

    def _fit(self, samples: np.ndarray, adapt: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]) -> None:
        """Sets the attributes.

        Args:
            adapt: moves the centroids (K x F, in place) by one epoch: centroids, the order of the samples, the step for
                each, and the time of each as a share, 0 to 1, of the fit; returns the mean distance to the winner.

        Raises:
            ClusteringError: parameters that cannot be.
        """
        self._check_parameters()
        count = len(samples)
        if count < self.n_clusters:
            raise ClusteringError(f"n_samples={count} should be >= n_clusters={self.n_clusters}")
        random = check_random_state(self.random_state)
        centroids = self._drawn(samples, self.n_clusters, random, replace=False)
        progress = Progress(type(self).__name__, self.epochs)
        for epoch, order in enumerate(self._orders(count, random)):
            times = (epoch * count + np.arange(count)) / (self.epochs * count)
            steps = decay(self.step_start, self.step_end, times)
            progress.log(epoch, adapt(centroids, order, steps, times))
        self.cluster_centers_ = centroids
        self.labels_ = assign(samples, centroids)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        require(is_whole(self.n_clusters, 1), "n_clusters", self.n_clusters, "a whole number, at least 1")
        for name in ("step_start", "step_end"):
            require(is_number(getattr(self, name), 0, 1), name, getattr(self, name), "a number above 0, at most 1")


class OnlineKMeans(ScheduledClusterer):
    """k-means sample by sample: the nearest centroid w of each sample x moves,

        Δw = ε(t) (x − w),   ε(t) = step_start (step_end / step_start)^t,

    and no other. This is the paper's kMC: its neural gas with R ≡ 10⁻³, as then h = exp(−rank / R) is 1 for rank 0 and 0 in
    float64 for all others.

    Arguments, attributes and errors are those of ScheduledClusterer.

    >>> samples = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> OnlineKMeans(2, init=[[0.0], [10.0]], random_state=0).fit(samples).labels_.tolist()
    [0, 0, 1, 1]
    """

    def fit(self, X: Any, y: object = None) -> "OnlineKMeans":  # noqa: N803
        """Learns from N x F samples; y is there for scikit-learn's sake."""
        samples = self._checked(X)
        self._fit(samples, lambda centroids, order, steps, _: _adapt_winner(centroids, samples, order, steps))
        return self


class NeuralGas(ScheduledClusterer):
    """Clustering in which every centroid learns from every sample, the nearer the more.

    For a sample x, the centroids w_i ranked by their distance to it, r_i = 0 for the nearest,

        Δw_i = ε(t) h(r_i) (x − w_i),   h(r) = exp(−r / R(t)),
        ε(t) = step_start (step_end / step_start)^t,   R(t) = radius_start (radius_end / radius_start)^t.

    The defaults are the paper's: 200 epochs, ε from 0.1 to 10⁻⁴, R from 2 K to 10⁻³. At the end, where R is small, this is
    OnlineKMeans; with R small throughout it is exactly that.

    Ranks with h(r) < 2⁻⁵³, which are r > 36.7 R, are taken for h = 0 and never sorted, and h is a power of exp(−1 / R): each
    shift is that of the formula but for at most 10⁻¹² of the distance between sample and centroid.

    Args:
        radius_start, radius_end: R at the start and the end, in ranks, above 0; None is 2 K.

    The other arguments, attributes and errors are those of ScheduledClusterer.

    >>> samples = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> NeuralGas(2, init=[[0.0], [10.0]], random_state=0).fit_predict(samples).tolist()
    [0, 0, 1, 1]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        epochs: int = 200,
        step_start: float = 0.1,
        step_end: float = 1e-4,
        radius_start: float | None = None,
        radius_end: float = 1e-3,
        init: Any = "random",
        shuffle_data: bool = True,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            n_clusters,
            epochs=epochs,
            step_start=step_start,
            step_end=step_end,
            init=init,
            shuffle_data=shuffle_data,
            random_state=random_state,
        )
        self.radius_start = radius_start
        self.radius_end = radius_end

    def fit(self, X: Any, y: object = None) -> "NeuralGas":  # noqa: N803
        """Learns from N x F samples; y is there for scikit-learn's sake."""
        samples = self._checked(X)

        def adapt(centroids: np.ndarray, order: np.ndarray, steps: np.ndarray, times: np.ndarray) -> float:
            return _adapt(centroids, samples, order, steps, decay(*self._radii(), times))

        self._fit(samples, adapt)
        return self

    def _radii(self) -> tuple[float, float]:
        return (2.0 * self.n_clusters if self.radius_start is None else self.radius_start), self.radius_end

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, radius in zip(("radius_start", "radius_end"), self._radii(), strict=True):
            require(is_number(radius, 0), name, radius, "a number above 0")


@njit(cache=True, nogil=True)
def _adapt(centroids: np.ndarray, samples: np.ndarray, order: np.ndarray, steps: np.ndarray, radii: np.ndarray) -> float:
    count = len(centroids)
    distances = np.empty(count)
    ranked = np.empty(count, np.int64)
    scratch = np.empty(2 * count + 1, np.int64)
    total = 0.0
    for position in range(len(order)):
        sample = samples[order[position]]
        for index in range(count):
            distances[index] = squared_distance(sample, centroids, index)
        reached = 1 + int(min(REACH * radii[position], count - 1.0))
        rank(distances, reached, ranked, scratch)
        total += np.sqrt(distances[ranked[0]])
        fall = np.exp(-1.0 / radii[position])
        rate = steps[position]
        for place in range(reached):
            move(centroids, ranked[place], sample, rate)
            rate *= fall
    return total / len(order)


@njit(cache=True, nogil=True)
def _adapt_winner(centroids: np.ndarray, samples: np.ndarray, order: np.ndarray, steps: np.ndarray) -> float:
    total = 0.0
    for position in range(len(order)):
        sample = samples[order[position]]
        winner, distance = nearest(sample, centroids)
        total += np.sqrt(distance)
        move(centroids, winner, sample, steps[position])
    return total / len(order)
