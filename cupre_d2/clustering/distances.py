"""Compiled distances between samples and centroids, and the nearest few centroids in order, without sorting the others."""

import numpy as np
from numba import njit

# Lets the compiler add up a distance in several lanes at once. Infinities stay what they are.
IN_LANES = {"reassoc", "contract", "nsz"}
# Up to so many are kept sorted while the distances are read once, which beats buckets for a few.
FEW = 16
# Distances that share a bucket are sorted by insertion: beyond so many, that would be slow.
CROWDED = 48


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


@njit(cache=True, nogil=True)
def rank(distances: np.ndarray, count: int, ranked: np.ndarray, scratch: np.ndarray) -> None:
    """Writes the indices of the `count` smallest distances into `ranked`, nearest first, equal ones by index.

    Args:
        distances: K float64.
        count: from 1 to K.
        ranked: K int64; what lies behind `count` is left undefined.
        scratch: at least 2 K + 1 int64, of any content.
    """
    if count <= FEW:
        _rank_few(distances, count, ranked)
    elif not _rank_by_buckets(distances, count, ranked, scratch):
        ranked[:] = np.argsort(distances, kind="mergesort")


@njit(cache=True, nogil=True)
def _rank_few(distances: np.ndarray, count: int, ranked: np.ndarray) -> None:
    found = 0
    for index in range(len(distances)):
        if found == count and distances[index] >= distances[ranked[count - 1]]:
            continue
        if found < count:
            found += 1
        _insert(distances, ranked, found - 1, index)


@njit(cache=True, nogil=True)
def _insert(distances: np.ndarray, ranked: np.ndarray, place: int, index: int) -> None:
    """Puts the index where it belongs in the sorted `ranked[:place]`, behind its equals."""
    while place > 0 and distances[ranked[place - 1]] > distances[index]:
        ranked[place] = ranked[place - 1]
        place -= 1
    ranked[place] = index


@njit(cache=True, nogil=True)
def _rank_by_buckets(distances: np.ndarray, count: int, ranked: np.ndarray, scratch: np.ndarray) -> bool:
    """As many buckets of equal width as distances; False if they are spread so unevenly that buckets do not help."""
    size = len(distances)
    low, high = distances.min(), distances.max()
    scale = (size - 1) / (high - low) if high > low else 0.0
    # 0 where all are equal or the range overflows, infinite where it is too narrow to be divided.
    if not 0 < scale < np.inf:
        return False
    buckets, ends = scratch[:size], scratch[size : 2 * size + 1]
    ends[:] = 0
    for index in range(size):
        bucket = int((distances[index] - low) * scale)
        buckets[index] = bucket
        ends[bucket + 1] += 1
    last = 0
    while ends[last] < count:
        if ends[last + 1] > CROWDED:
            return False
        ends[last + 1] += ends[last]
        last += 1
    # Each end is where its bucket starts until the bucket is filled.
    for index in range(size):
        bucket = buckets[index]
        if bucket < last:
            ranked[ends[bucket]] = index
            ends[bucket] += 1
    for place in range(1, ends[last - 1]):
        _insert(distances, ranked, place, ranked[place])
    return True
