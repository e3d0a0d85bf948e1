"""5,000 samples of 32 features, 500 centroids: our clusterers beside the same rules as plain NumPy loops.

The plain loops take one sample after the other, as ours do, with NumPy over all centroids, and give the same result, which
is checked. Neural gas runs its whole schedule, from the radius at which every centroid moves to the one at which the
winner does, in ten epochs. Growing neural gas has as many nodes from the start to the end, and the paper's parameters.
Seconds are the processor's, on one thread, so that other work on the machine does not count; of some turns the best, and
compiling, which numba does once, is left out.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import Figure

SAMPLES, FEATURES, CENTROIDS = 5000, 32, 500
EPOCHS, TURNS = 10, 4
# Ours take a twentieth of the time, so that a short disturbance would count twenty times as much.
OURS_A_TURN = 3
# The paper's.
EPS = (0.1, 1e-4)
RADII = (2.0 * CENTROIDS, 1e-3)
GROWING: dict[str, Any] = {
    "step": 0.1,
    "neighbour_step": 0.001,
    "max_edge_age": 50,
    "n_iter_before_neuron_added": 100,
    "min_distance_for_update": 0.2,
}
BARS = {"online k-means": 10, "neural gas": 6, "growing neural gas": 20}
FULL_CENTROIDS, FULL_EPOCHS = 1000, 200

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]


def run() -> list[Figure]:
    from cupre_d2.clustering import GrowingNeuralGas, NeuralGas, OnlineKMeans

    samples, start = _make()
    ours: dict[str, Fit] = {
        "online k-means": lambda x, w: (
            OnlineKMeans(len(w), epochs=EPOCHS, init=w, shuffle_data=False).fit(x).cluster_centers_
        ),
        "neural gas": lambda x, w: NeuralGas(len(w), epochs=EPOCHS, init=w, shuffle_data=False).fit(x).cluster_centers_,
        "growing neural gas": lambda x, w: (
            GrowingNeuralGas(epochs=EPOCHS, init=w, max_nodes=len(w), **GROWING).fit(x).cluster_centers_
        ),
    }
    plain: dict[str, Fit] = {
        "online k-means": plain_k_means,
        "neural gas": plain_neural_gas,
        "growing neural gas": plain_growing_neural_gas,
    }
    figures = []
    for name, bar in BARS.items():
        ours[name](samples[:1000], start)  # Compiles.
        fast = slow = np.inf
        for _ in range(TURNS):
            seconds, theirs = _timed(plain[name], samples, start)
            slow = min(slow, seconds)
            for _ in range(OURS_A_TURN):
                seconds, found = _timed(ours[name], samples, start)
                fast = min(fast, seconds)
            if found.shape != theirs.shape or not np.allclose(found, theirs, atol=1e-8):
                raise AssertionError(f"{name}: the plain loop comes to other centroids")
        took = f"({1000 * fast / EPOCHS:.1f} ms, {1000 * slow / EPOCHS:.0f} ms an epoch)"
        figures.append(Figure(f"{name}, times faster than a plain NumPy loop", slow / fast, took, bar, "at least"))
    started = time.process_time()
    NeuralGas(FULL_CENTROIDS, epochs=FULL_EPOCHS, random_state=0).fit(samples)
    seconds = time.process_time() - started
    figures.append(Figure(f"neural gas of {FULL_CENTROIDS} centroids, {FULL_EPOCHS} epochs", seconds, "s", 180))
    return figures


def _make() -> tuple[np.ndarray, np.ndarray]:
    """Samples of clusters that overlap, variance falling from feature to feature as PCA leaves it; start nodes of them."""
    random = np.random.default_rng(0)
    centers = random.normal(0, 1, (50, FEATURES))
    samples = centers[random.integers(50, size=SAMPLES)] + random.normal(0, 0.5, (SAMPLES, FEATURES))
    return samples * np.linspace(3, 0.3, FEATURES), (samples * np.linspace(3, 0.3, FEATURES))[:CENTROIDS].copy()


def _timed(fit: Fit, samples: np.ndarray, start: np.ndarray) -> tuple[float, np.ndarray]:
    started = time.process_time()
    centroids = fit(samples, start)
    return time.process_time() - started, centroids


def _schedule(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Step and radius for each of so many updates."""
    times = np.arange(count) / count
    return EPS[0] * (EPS[1] / EPS[0]) ** times, RADII[0] * (RADII[1] / RADII[0]) ** times


def plain_k_means(samples: np.ndarray, start: np.ndarray) -> np.ndarray:
    centroids = start.copy()
    steps, _ = _schedule(EPOCHS * len(samples))
    for update, step in enumerate(steps):
        sample = samples[update % len(samples)]
        winner = ((centroids - sample) ** 2).sum(1).argmin()
        centroids[winner] += step * (sample - centroids[winner])
    return centroids


def plain_neural_gas(samples: np.ndarray, start: np.ndarray) -> np.ndarray:
    centroids = start.copy()
    ranks = np.empty(len(centroids))
    for update, (step, radius) in enumerate(zip(*_schedule(EPOCHS * len(samples)), strict=True)):
        apart = samples[update % len(samples)] - centroids
        ranks[(apart**2).sum(1).argsort()] = np.arange(len(centroids))
        centroids += (step * np.exp(-ranks / radius))[:, None] * apart
    return centroids


def plain_growing_neural_gas(samples: np.ndarray, start: np.ndarray) -> np.ndarray:
    """neupy's rule, with arrays for weights and errors, and for each node a dict of its neighbours and the edges' ages."""
    weights, errors = start.copy(), np.zeros(len(start))
    edges: list[dict[int, int]] = [{} for _ in start]
    updates = 0
    for sample in np.tile(samples, (EPOCHS, 1)):
        distances = np.sqrt(((weights - sample) ** 2).sum(1))
        winner, second = distances.argsort()[:2].tolist()
        if distances[winner] < GROWING["min_distance_for_update"] ** 2:
            continue
        updates += 1
        errors[winner] += distances[winner]
        weights[winner] += GROWING["step"] * (sample - weights[winner])
        edges[winner][second] = edges[second][winner] = 0
        lonely = []
        for node, age in list(edges[winner].items()):
            if age >= GROWING["max_edge_age"]:
                del edges[winner][node], edges[node][winner]
                lonely += [] if edges[node] else [node]
            else:
                edges[winner][node] = edges[node][winner] = age + 1
                weights[node] += GROWING["neighbour_step"] * (sample - weights[node])
        for node in sorted(lonely, reverse=True):
            weights, errors = np.delete(weights, node, 0), np.delete(errors, node)
            del edges[node]
            edges = [{other - (other > node): age for other, age in of_node.items()} for of_node in edges]
        if updates % GROWING["n_iter_before_neuron_added"] == 0 and len(weights) < len(start):
            worst = int(errors.argmax())
            neighbour = max(edges[worst], key=errors.__getitem__)
            errors[[worst, neighbour]] *= 0.5
            del edges[worst][neighbour], edges[neighbour][worst]
            for node in (worst, neighbour):
                edges[node][len(weights)] = 0
            edges.append({worst: 0, neighbour: 0})
            weights = np.vstack([weights, (weights[worst] + weights[neighbour]) / 2])
            errors = np.append(errors, 0)
        errors *= 0.995
    return weights
