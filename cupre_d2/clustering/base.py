"""What the three clusterers share: checks, start nodes, the schedule, and what scikit-learn expects of them."""

import logging
import numbers
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from cupre_d2.clustering.distances import assign
from cupre_d2.errors import ClusteringError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class CentroidClusterer(ClusterMixin, BaseEstimator):
    """Clusters are the samples nearest to one of K centroids.

    Attributes:
        cluster_centers_: K x F float64.
        labels_: N int64, 0..K-1: the nearest centroid of each sample `fit` saw. A centroid may have none.
    """

    epochs: int
    shuffle_data: bool
    init: Any
    random_state: Any
    cluster_centers_: np.ndarray
    labels_: np.ndarray

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """N int64: index of the nearest centroid of each of N x F samples, of equally near ones the first.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: samples with other features than those of `fit`, or with NaN.
        """
        check_is_fitted(self)
        return assign(self._checked(X, reset=False), self.cluster_centers_)

    def _checked(self, samples: Any, reset: bool = True) -> np.ndarray:
        """The samples as N x F float64, contiguous.

        Raises:
            ClusteringError: NaN or infinity.
            ValueError: what scikit-learn says of anything else that is no N x F array.
        """
        array = validate_data(self, samples, reset=reset, dtype=np.float64, order="C", ensure_all_finite=False)
        bad = ~np.isfinite(array)
        if bad.any():
            sample, feature = np.argwhere(bad)[0]
            kind = "NaN" if np.isnan(array[bad]).any() else "infinity"
            raise ClusteringError(
                f"Input X contains {kind}: {bad.any(1).sum()} of {len(array)} samples, "
                f"the first is sample {sample}, feature {feature}; expected finite numbers"
            )
        if reset and len(array) > 1 and not np.ptp(array, axis=0).any():
            warnings.warn("all samples are equal, so all are in one cluster", ConvergenceWarning, stacklevel=3)
        return array

    def _drawn(self, samples: np.ndarray, count: int, random: np.random.RandomState, replace: bool) -> np.ndarray:
        """Start nodes: `init` where it is an array, else so many samples; a copy, K x F float64.

        Raises:
            ClusteringError: an `init` of another shape or kind.
        """
        if isinstance(self.init, str):
            require(self.init == "random", "init", self.init, '"random" or an array of start nodes')
            return samples[random.choice(len(samples), count, replace=replace)]
        nodes = np.array(self.init, np.float64, order="C")
        if nodes.shape != (count, samples.shape[1]) or not np.isfinite(nodes).all():
            raise ClusteringError(
                f"init of shape {nodes.shape}; expected finite start nodes, {count} x {samples.shape[1]} numbers"
            )
        return nodes

    def _orders(self, count: int, random: np.random.RandomState) -> Iterator[np.ndarray]:
        """For each epoch the order of the samples."""
        for _ in range(self.epochs):
            yield random.permutation(count) if self.shuffle_data else np.arange(count)

    def _check_parameters(self) -> None:
        require(is_whole(self.epochs, 1), "epochs", self.epochs, "a whole number, at least 1")


class Progress:
    """A line of the log whenever some seconds have passed, so that a long fit is seen to be alive."""

    def __init__(self, name: str, epochs: int) -> None:
        self._name = name
        self._epochs = epochs
        self._started = self._logged = time.monotonic()

    def log(self, epoch: int, distance: float) -> None:
        """After each epoch, from 0, with the mean distance from a sample to its winner during it."""
        now = time.monotonic()
        if now - self._logged < SECONDS_BETWEEN_LINES:
            return
        self._logged = now
        done = epoch + 1
        # Later epochs are no slower: neural gas moves fewer centroids. Growing neural gas may exceed this.
        left = (now - self._started) / done * (self._epochs - done)
        message = "%s: epoch %d of %d, mean distance to the winner %.4g, about %.0f s left"
        logger.info(message, self._name, done, self._epochs, distance, left)


def decay(start: float, end: float, times: np.ndarray) -> np.ndarray:
    """start · (end / start)^t for times t from 0 to 1 (Martinetz et al. 1993; the paper's geometric decay).

    >>> decay(0.1, 0.001, np.array([0.0, 0.5, 1.0])).round(6).tolist()
    [0.1, 0.01, 0.001]
    """
    return start * (end / start) ** times


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raises ClusteringError, naming the parameter, unless the condition holds."""
    if not holds:
        raise ClusteringError(f"{name} {value!r}: expected {expected}")


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any, above: float, most: float = np.inf) -> bool:
    return isinstance(value, numbers.Real) and bool(above < float(value) <= most and np.isfinite(float(value)))
