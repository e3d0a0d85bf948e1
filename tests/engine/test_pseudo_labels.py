import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from cupre_d2.config import default_config
from cupre_d2.data.loaders import Samples
from cupre_d2.engine.pseudo_labels import ALGORITHMS, build_clusterer, cluster_latents, cluster_statistics
from cupre_d2.errors import ClusteringError, ConfigError
from cupre_d2.modeling.latent import encoder_of


def samples(count: int) -> Samples:
    return Samples(torch.zeros(count, 3, 1, 1), [f"{i}.png" for i in range(count)], [""] * count)


def keys(algorithm: str, clusters: int = 3) -> CfgNode:
    cfg = default_config().CLUSTERING
    cfg.ALGORITHM, cfg.CLUSTERS, cfg.COMPONENTS = algorithm, clusters, 4
    return cfg


@pytest.fixture()
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Latents of 300 samples x 10 around three points, and which."""
    rng = np.random.default_rng(0)
    which = rng.integers(0, 3, 300)
    return rng.normal(size=(3, 10))[which] * 5 + rng.normal(size=(300, 10)) * 0.1, which


@pytest.mark.parametrize("algorithm", ["kmeans", "neural_gas"])
def test_finds_the_clusters(blobs: tuple[np.ndarray, np.ndarray], algorithm: str) -> None:
    latents, which = blobs
    # Of random starts some leave two centroids in one blob.
    found = [cluster_latents(latents, samples(300), keys(algorithm), seed) for seed in range(4)]
    best = min(found, key=lambda one: one.statistics["inertia"])
    assert len({(a, b) for a, b in zip(best.labels, which, strict=True)}) == 3
    assert best.components.shape == (300, 4) and best.centers.shape == (3, 4)
    assert best.statistics["explained_variance"] > 0.99


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_the_same_clusters(blobs: tuple[np.ndarray, np.ndarray], algorithm: str) -> None:
    one, other = (cluster_latents(blobs[0], samples(300), keys(algorithm, 8), seed=7) for _ in range(2))
    assert np.array_equal(one.labels, other.labels) and np.array_equal(one.centers, other.centers)
    assert len(one.centers) <= 8


def test_growing_neural_gas_has_the_papers_epochs() -> None:
    gas = build_clusterer("growing_neural_gas", 500, 5000, 0)
    assert gas.get_params()["epochs"] == 10
    assert gas.get_params()["max_nodes"] == 500
    assert gas.get_params()["min_distance_for_update"] == 0.2


def test_statistics() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    found = cluster_statistics(labels, 4, ["a", "a", "a", "a", "b", "b", "b", "b"])
    assert (found["clusters"], found["empty"], found["largest"], found["smallest"]) == (4, 1, 4, 0)
    assert found["entropy"] == pytest.approx((0.5 * np.log(2) + 2 * 0.25 * np.log(4)) / np.log(4))
    # Type a lies in one cluster, entropy 0; b in two of four, entropy log 2 / log 4.
    assert (found["type_entropy_mean"], found["type_entropy_std"]) == pytest.approx((0.25, 0.25))
    assert "type_entropy_std" not in cluster_statistics(labels, 4, [""] * 8)
    assert cluster_statistics(np.zeros(3, int), 1, [""] * 3)["entropy"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.where(np.arange(len(x))[:, None] == 5, np.nan, x), "latents of 1 of 40 .* the first that of 5.png"),
        (lambda x: np.where(np.arange(len(x))[:, None] > 37, np.inf, x), "latents of 2 of 40 .* the first that of 38.png"),
        (lambda x: np.zeros_like(x), "the latents of all 40 samples are the same"),
        (lambda x: np.ones_like(x) * 3 + x * 1e-9, "the latents of all 40 samples are the same"),
        (lambda x: x[:, :3], "CLUSTERING.COMPONENTS 4: expected at most 3"),
    ],
)
def test_bad_latents(change: object, message: str) -> None:
    latents = np.random.default_rng(0).normal(size=(40, 10))
    with pytest.raises(ClusteringError, match=message):
        cluster_latents(change(latents), samples(40), keys("kmeans"), 0)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("algorithm", "clusters", "message"),
    [
        ("kmeans", 41, "CLUSTERING.CLUSTERS 41: expected at most the 40 samples"),
        ("growing_neural_gas", 4, "growing neural gas starts with 5 nodes"),
        ("gas", 4, "CLUSTERING.ALGORITHM 'gas': expected one of kmeans, neural_gas, growing_neural_gas"),
    ],
)
def test_bad_parameters(algorithm: str, clusters: int, message: str) -> None:
    with pytest.raises(ClusteringError, match=message):
        build_clusterer(algorithm, clusters, 40, 0)


def test_network_without_a_backbone() -> None:
    with pytest.raises(ConfigError, match="Linear has no backbone.bottom_up"):
        encoder_of(nn.Linear(1, 1))
