"""From samples to pseudo-labels: latent, average pool, principal components, clusters (paper 003)."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm
from sklearn.decomposition import PCA

from cupre_d2.clustering import GrowingNeuralGas, NeuralGas, OnlineKMeans
from cupre_d2.data.loaders import Samples
from cupre_d2.engine.distributed import share_buffers
from cupre_d2.errors import ClusteringError, CupreError
from cupre_d2.modeling.latent import PooledLatent

logger = logging.getLogger(__name__)

ALGORITHMS = ("kmeans", "neural_gas", "growing_neural_gas")
# Of growing neural gas, as the paper has them; its list of the two steps swaps their symbols.
START_NODES = 5
UPDATES_A_NODE = 100
# Images that the encoder sees at once; without gradients, this many fit wherever it trains.
LATENT_BATCH = 16
# Of the largest latent: what differs less than this differs by rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class PseudoLabels:
    """Clusters of N samples.

    Attributes:
        labels: N int64, 0..K-1.
        components: N x D float64, what was clustered.
        centers: K x D float64.
        statistics: see `cluster_statistics`; and "inertia", the mean squared distance of a sample to its centroid, and
            "explained_variance", the share of the latent's variance, 0..1, that the principal components hold.
    """

    labels: np.ndarray
    components: np.ndarray
    centers: np.ndarray
    statistics: dict[str, float]


def pseudo_labels(latent: PooledLatent, samples: Samples, keys: CfgNode, seed: int) -> PseudoLabels:
    """Clusters samples by what an encoder makes of them; the same on all processes, which share the encoder's work.

    Args:
        keys: the config's CLUSTERING.
        seed: of 32 bits.

    Raises:
        ClusteringError: latents that are not finite or all the same, or too few of them; raised on all processes.
    """
    # Batch norms' running statistics are each process's own until then.
    share_buffers(latent)
    shares = comm.all_gather(latent.of_samples(samples.images[comm.get_rank() :: comm.get_world_size()], LATENT_BATCH))
    latents = np.empty((len(samples), latent.channels))
    for rank, share in enumerate(shares):
        latents[rank :: len(shares)] = share.numpy()
    result: Any = None
    if comm.is_main_process():
        try:
            result = cluster_latents(latents, samples, keys, seed)
        except CupreError as error:
            result = error
    # Clustered once: processes whose numbers differ in the last bit could come to different clusters.
    result = comm.all_gather(result)[0]
    if isinstance(result, CupreError):
        raise result
    return result


def cluster_latents(latents: np.ndarray, samples: Samples, keys: CfgNode, seed: int) -> PseudoLabels:
    """Clusters N x C pooled latents of N samples; as `pseudo_labels`, in this process."""
    _check_latents(latents, samples, keys.COMPONENTS)
    analysis = PCA(keys.COMPONENTS, svd_solver="full")
    components = analysis.fit_transform(latents)
    clusterer = build_clusterer(keys.ALGORITHM, keys.CLUSTERS, len(latents), seed).fit(components)
    centers, labels = clusterer.cluster_centers_, clusterer.labels_
    statistics = {
        **cluster_statistics(labels, len(centers), samples.cell_types),
        "inertia": float(np.mean(np.sum((components - centers[labels]) ** 2, axis=1))),
        "explained_variance": float(analysis.explained_variance_ratio_.sum()),
    }
    shown = ", ".join(f"{name} {value:.4g}" for name, value in statistics.items())
    logger.info(f"{keys.ALGORITHM} of {len(labels)} samples: {shown}")
    return PseudoLabels(labels, components, centers, statistics)


def build_clusterer(
    algorithm: str, clusters: int, samples: int, random_state: int
) -> OnlineKMeans | NeuralGas | GrowingNeuralGas:
    """A clusterer with the paper's numbers.

    Of growing neural gas the paper says neither the epochs nor the most nodes; here it grows to at most `clusters`, over as
    many epochs as that takes if every sample is an update (10 for 500 nodes and 5,000 samples, the paper's "≈ 500").

    Raises:
        ClusteringError: more clusters than samples, fewer than growing neural gas starts with, or an unknown algorithm.
    """
    if clusters > samples:
        raise ClusteringError(f"CLUSTERING.CLUSTERS {clusters}: expected at most the {samples} samples")
    if algorithm == "kmeans":
        return OnlineKMeans(clusters, random_state=random_state)
    if algorithm == "neural_gas":
        return NeuralGas(clusters, random_state=random_state)
    if algorithm != "growing_neural_gas":
        raise ClusteringError(f"CLUSTERING.ALGORITHM {algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
    if clusters < START_NODES:
        raise ClusteringError(f"CLUSTERING.CLUSTERS {clusters}: growing neural gas starts with {START_NODES} nodes")
    return GrowingNeuralGas(
        step=0.1,
        neighbour_step=0.001,
        max_edge_age=50,
        max_nodes=clusters,
        n_iter_before_neuron_added=UPDATES_A_NODE,
        after_split_error_decay_rate=0.5,
        error_decay_rate=0.995,
        min_distance_for_update=0.2,
        n_start_nodes=START_NODES,
        epochs=math.ceil(UPDATES_A_NODE * clusters / samples),
        # neupy takes the samples as they come, and they come in random order.
        random_state=random_state,
    )


def cluster_statistics(labels: np.ndarray, clusters: int, cell_types: Sequence[str]) -> dict[str, float]:
    """What clusters look like, whatever they are of.

    The normalised entropy of N counts n over K clusters is −Σ p log p / log K with p = n / N: 1 for clusters of one size, 0
    where one has all. The paper plots the standard deviation of "normalised entropy" without a formula; here it is that over
    cell types, of the entropy of each type's counts.

    Args:
        labels: N numbers, 0..K-1.
        clusters: K.
        cell_types: of each sample, "" for unknown.

    Returns:
        "clusters" (K), "empty" (clusters without a sample), "largest" and "smallest" (samples, of the empty ones 0),
        "entropy" of all sizes; where there are cell types "type_entropy_mean" and "type_entropy_std" over them.

    >>> cluster_statistics(np.array([0, 0, 1, 1]), 2, ["a", "a", "b", ""])["entropy"]
    1.0
    """
    sizes = np.bincount(labels, minlength=clusters)
    statistics = {
        "clusters": float(clusters),
        "empty": float((sizes == 0).sum()),
        "largest": float(sizes.max()),
        "smallest": float(sizes.min()),
        "entropy": _normalized_entropy(sizes),
    }
    types = np.array(cell_types)
    names = sorted(set(cell_types) - {""})
    if names:
        entropies = [_normalized_entropy(np.bincount(labels[types == name], minlength=clusters)) for name in names]
        statistics["type_entropy_mean"] = float(np.mean(entropies))
        statistics["type_entropy_std"] = float(np.std(entropies))
    return statistics


def _normalized_entropy(counts: np.ndarray) -> float:
    if len(counts) == 1:
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(abs(np.sum(shares * np.log(shares)))) / math.log(len(counts))


def _check_latents(latents: np.ndarray, samples: Samples, components: int) -> None:
    bad = np.flatnonzero(~np.isfinite(latents).all(1))
    if len(bad):
        raise ClusteringError(
            f"the latents of {len(bad)} of {len(latents)} samples are not finite, the first that of {samples.files[bad[0]]}"
            "; expected the weights of an encoder that was trained (MODEL.WEIGHTS)"
        )
    if np.ptp(latents, axis=0).max() <= ROUNDING * np.abs(latents).max():
        raise ClusteringError(
            f"the latents of all {len(latents)} samples are the same, so that there are no clusters; expected an encoder "
            "that tells images apart (MODEL.WEIGHTS) and images that differ (DATASETS.UNLABELED)"
        )
    if min(latents.shape) < components:
        raise ClusteringError(
            f"CLUSTERING.COMPONENTS {components}: expected at most {min(latents.shape)}, "
            f"as there are {len(latents)} samples of {latents.shape[1]} channels"
        )
