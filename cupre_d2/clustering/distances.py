"""Compiled distances between samples and centroids."""

import numpy as np
from numba import njit

# Lets the compiler add up a distance in several lanes at once. Infinities stay what they are.
IN_LANES = {"reassoc", "contract", "nsz"}


@njit(cache=True, nogil=True, fastmath=IN_LANES)
def squared_distance(sample: np.ndarray, centroids: np.ndarray, index: int) -> float:
    """Between a sample, F float64, and one of K x F centroids; a view of that one would cost more than the distance."""
    total = 0.0
    for feature in range(len(sample)):
        apart = sample[feature] - centroids[index, feature]
        total += apart * apart
    return total


@njit(cache=True, nogil=True)
def nearest(sample: np.ndarray, centroids: np.ndarray) -> tuple[int, float]:
    """Index of the nearest of K x F centroids, of equally near ones the first, and its squared distance."""
    winner, smallest = 0, np.inf
    for index in range(len(centroids)):
        distance = squared_distance(sample, centroids, index)
        if distance < smallest:
            winner, smallest = index, distance
    return winner, smallest


@njit(cache=True, nogil=True)
def assign(samples: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """N int64: index of the nearest centroid of each of N x F samples."""
    labels = np.empty(len(samples), np.int64)
    for index in range(len(samples)):
        labels[index] = nearest(samples[index], centroids)[0]
    return labels


@njit(cache=True, nogil=True)
def move(centroids: np.ndarray, index: int, sample: np.ndarray, rate: float) -> None:
    """Moves one of K x F centroids, in place, by this share of its way to the sample."""
    for feature in range(centroids.shape[1]):
        centroids[index, feature] += rate * (sample[feature] - centroids[index, feature])
