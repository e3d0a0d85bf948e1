"""Online k-means and neural gas against their formulas, and against each other."""

import logging

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from cupre_d2.clustering import NeuralGas, OnlineKMeans, base
from cupre_d2.clustering.distances import FEW, rank
from cupre_d2.errors import ClusteringError

EPOCHS = 6


def make(seed: int, count: int = 400, features: int = 8) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, features)) * np.linspace(3, 0.2, features)


def plain_neural_gas(samples: np.ndarray, start: np.ndarray, radius_start: float, radius_end: float = 1e-3) -> np.ndarray:
    """The formula, with the ranks of all centroids and exp of each."""
    centroids, total = start.copy(), EPOCHS * len(samples)
    for update in range(total):
        time = update / total
        radius = radius_start * (radius_end / radius_start) ** time
        apart = samples[update % len(samples)] - centroids
        ranks = np.argsort(np.argsort((apart**2).sum(1), kind="stable"), kind="stable")
        with np.errstate(under="ignore"):
            centroids += 0.1 * (1e-4 / 0.1) ** time * np.exp(-ranks / radius)[:, None] * apart
    return centroids


@pytest.mark.parametrize(("seed", "clusters"), [(0, 5), (1, 60), (2, 300)])
def test_neural_gas_is_the_formula_with_every_rank(seed: int, clusters: int) -> None:
    samples = make(seed)
    start = samples[:clusters]
    gas = NeuralGas(clusters, epochs=EPOCHS, init=start, shuffle_data=False).fit(samples)
    expected = plain_neural_gas(samples, start, 2 * clusters)
    np.testing.assert_allclose(gas.cluster_centers_, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("radius", [1e-3, 1e-12])
def test_neural_gas_without_neighbours_is_online_k_means_exactly(seed: int, radius: float) -> None:
    samples = make(seed)
    gas = NeuralGas(40, epochs=EPOCHS, radius_start=radius, radius_end=radius, random_state=seed).fit(samples)
    means = OnlineKMeans(40, epochs=EPOCHS, random_state=seed).fit(samples)
    assert np.array_equal(gas.cluster_centers_, means.cluster_centers_)
    assert np.array_equal(gas.labels_, means.labels_)


def test_online_k_means_is_the_formula() -> None:
    samples = make(3)
    means = OnlineKMeans(30, epochs=EPOCHS, init=samples[:30], shuffle_data=False).fit(samples)
    expected = plain_neural_gas(samples, samples[:30], 1e-3)
    np.testing.assert_allclose(means.cluster_centers_, expected, rtol=0, atol=1e-12)
    distances = np.linalg.norm(samples[:, None] - means.cluster_centers_, axis=2)
    assert np.array_equal(means.labels_, distances.argmin(1))


def uneven(kind: str, size: int) -> np.ndarray:
    random = np.random.default_rng(size)
    return {
        "uniform": random.random(size),
        "equal": np.full(size, 3.0),
        "few values": random.integers(4, size=size).astype(float),
        "one far": np.append(random.random(size - 1), 1e12),
        "infinite": np.append(random.random(size - 1), np.inf),
        "two heaps": np.repeat([0.0, 1.0], size)[:size] + 1e-14 * random.random(size),
        "close": 1 + 1e-16 * random.integers(3, size=size),
        "tiny": 5e-324 * random.integers(3, size=size),
    }[kind]


@pytest.mark.parametrize("kind", ["uniform", "equal", "few values", "one far", "infinite", "two heaps", "close", "tiny"])
def test_ranking_is_a_stable_sort(kind: str) -> None:
    for size in (2, 3, FEW, 100, 1000):
        distances = uneven(kind, size)
        expected = np.argsort(distances, kind="stable")
        for count in sorted({1, 2, min(FEW, size), min(FEW + 1, size), size // 2 + 1, size}):
            ranked = np.full(size, -1)
            rank(distances, count, ranked, np.full(2 * size + 1, 99))
            assert np.array_equal(ranked[:count], expected[:count]), (kind, size, count)


@pytest.mark.parametrize("clusterer", [OnlineKMeans, NeuralGas])
class TestBoth:
    def test_random_state_decides(self, clusterer: type) -> None:
        samples = make(0)
        fits = [clusterer(20, epochs=3, random_state=seed).fit(samples) for seed in (0, 0, 1)]
        assert np.array_equal(fits[0].cluster_centers_, fits[1].cluster_centers_)
        assert not np.array_equal(fits[0].cluster_centers_, fits[2].cluster_centers_)
        kept = clusterer(20, epochs=3, random_state=0, shuffle_data=False).fit(samples)
        assert not np.array_equal(fits[0].cluster_centers_, kept.cluster_centers_)

    def test_leaves_samples_and_start_nodes_alone(self, clusterer: type) -> None:
        samples = make(0)
        before, start = samples.copy(), samples[:10]
        clusterer(10, epochs=2, init=start).fit(samples)
        assert np.array_equal(samples, before)

    def test_more_clusters_than_samples(self, clusterer: type) -> None:
        with pytest.raises(ClusteringError, match="^n_samples=20 should be >= n_clusters=21$"):
            clusterer(21).fit(make(0, 20))
        assert len(clusterer(20, epochs=1).fit(make(0, 20)).cluster_centers_) == 20

    @pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
    def test_not_a_number(self, clusterer: type, value: float, kind: str) -> None:
        samples = make(0, 20)
        fitted = clusterer(2, epochs=1).fit(samples)
        samples[3, 5] = samples[7, 1] = value
        message = f"^Input X contains {kind}: 2 of 20 samples, the first is sample 3, feature 5; expected finite numbers$"
        with pytest.raises(ClusteringError, match=message):
            clusterer(2).fit(samples)
        with pytest.raises(ClusteringError, match=message):
            fitted.predict(samples)

    def test_constant_features_have_no_influence(self, clusterer: type) -> None:
        samples = make(0)
        constant = np.concatenate([samples, np.full((len(samples), 2), 7.0)], axis=1)
        plain = clusterer(9, epochs=3, random_state=0).fit(samples)
        found = clusterer(9, epochs=3, random_state=0).fit(constant)
        np.testing.assert_allclose(found.cluster_centers_[:, :8], plain.cluster_centers_, atol=1e-12)
        assert np.array_equal(found.cluster_centers_[:, 8:], np.full((9, 2), 7.0))
        assert np.array_equal(found.labels_, plain.labels_)

    def test_samples_all_equal(self, clusterer: type) -> None:
        with pytest.warns(ConvergenceWarning, match="all samples are equal, so all are in one cluster"):
            found = clusterer(4, epochs=2, random_state=0).fit(np.full((9, 3), 2.0))
        assert np.array_equal(found.cluster_centers_, np.full((4, 3), 2.0)) and not found.labels_.any()

    def test_a_single_sample(self, clusterer: type) -> None:
        found = clusterer(1, epochs=2).fit([[1.0, 2.0]])
        assert found.cluster_centers_.tolist() == [[1.0, 2.0]] and found.labels_.tolist() == [0]
        with pytest.raises(ClusteringError, match="n_samples=1 should be >= n_clusters=2"):
            clusterer(2).fit([[1.0, 2.0]])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"n_clusters": 0}, "n_clusters 0: expected a whole number, at least 1"),
            ({"n_clusters": 2.5}, "n_clusters 2.5: expected a whole number"),
            ({"epochs": 0}, "epochs 0: expected a whole number"),
            ({"step_start": 0.0}, "step_start 0.0: expected a number above 0, at most 1"),
            ({"step_end": 1.5}, "step_end 1.5: expected a number above 0, at most 1"),
            ({"init": "k-means++"}, "init 'k-means\\+\\+': expected"),
            ({"n_clusters": 3, "init": np.zeros((2, 8))}, r"init of shape \(2, 8\); expected finite start nodes, 3 x 8"),
        ],
    )
    def test_bad_parameters(self, clusterer: type, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ClusteringError, match=message):
            clusterer(**settings).fit(make(0, 20))

    def test_a_long_fit_shows_its_progress(
        self, clusterer: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(base, "SECONDS_BETWEEN_LINES", 0.0)
        with caplog.at_level(logging.INFO):
            clusterer(4, epochs=3).fit(make(0, 50))
        assert len(caplog.messages) == 3
        assert caplog.messages[1].startswith(f"{clusterer.__name__}: epoch 2 of 3, mean distance to the winner")


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan])
def test_bad_radius(radius: float) -> None:
    with pytest.raises(ClusteringError, match="radius_end .*: expected a number above 0"):
        NeuralGas(2, radius_end=radius).fit(make(0, 20))
