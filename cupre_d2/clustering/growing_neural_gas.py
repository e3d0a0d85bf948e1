"""Growing neural gas (Fritzke, NIPS 1995), by neupy's rule or as published."""

from typing import Any

from sklearn.utils import check_random_state

from cupre_d2.clustering.base import CentroidClusterer, Progress, is_number, is_whole, require
from cupre_d2.clustering.distances import assign
from cupre_d2.clustering.growing_graph import Rules, compacted, learn, new_graph
from cupre_d2.errors import ClusteringError


class GrowingNeuralGas(CentroidClusterer):
    """Clustering by a graph that grows where samples are far from its nodes.

    For each sample x, with d₁ its distance to the nearest node (the winner, of weights w₁) and the second nearest s:

    1. If d₁ is below the threshold, x is passed over; the rest of this list is an update.
    2. The winner's error grows by d₁; it moves, Δw₁ = step (x − w₁).
    3. The edge between winner and s is made, or its age set back to 0.
    4. Each edge of the winner: of age max_edge_age it goes, and its other node too if that has no other edge (the winner
       stays); else it ages by 1 and its other node moves, Δw = neighbour_step (x − w).
    5. At every n_iter_before_neuron_added-th update, if there are fewer than max_nodes nodes: of the node q with the largest
       error and its neighbour f with the largest, both errors are multiplied by after_split_error_decay_rate, and a node of
       error 0 halfway between them takes the place of their edge, with an edge of age 0 to each.
    6. All errors are multiplied by error_decay_rate.

    That is `compatible="neupy"`: with the same start nodes and order of samples, the nodes, edges and ages of neupy 0.8.2,
    which the paper used. The paper's numbers count on its two quirks: the threshold is the square of
    min_distance_for_update, though d₁ is no square, so that 0.2 works as 0.04; and the error is a sum of distances, where
    the paper's eq. 6 and Fritzke have their squares.

    `compatible="fritzke"` is the algorithm as published: the error grows by d₁², the new node inherits q's error (after
    its decay), s does not move unless it was a neighbour before, and edges go when older than max_edge_age. Fritzke has no
    threshold; here min_distance_for_update is one for d₁, taken as it is.

    The parameters are neupy's, with its defaults, but for n_inputs, which is read off the samples, and `epochs`, which
    neupy gives to train(). The paper: step=0.1, neighbour_step=0.001 (its list swaps the two symbols), max_edge_age=50,
    n_iter_before_neuron_added=100, min_distance_for_update=0.2, n_start_nodes=5; with 5,000 samples that is 50 nodes an
    epoch.

    Where neupy leaves a choice: of equally near nodes the first is nearest, of equal errors the first is largest (nodes
    from old to new), and if q has no neighbour, as when all errors are 0, no node is added, where neupy fails.

    Features that are constant have no influence. If all samples are equal, a ConvergenceWarning says so: start nodes stay
    where they are, and above a threshold of 0 nothing grows and the fit stops after an epoch. A fit of more than 10 s logs
    its progress (logger cupre_d2.clustering.base). Memory is up to 48 bytes a pair of nodes.

    Args:
        step: share of its way to the sample that the winner moves, above 0, at most 1.
        neighbour_step: the same for its neighbours, 0 to 1.
        max_edge_age: winners an edge lives through, at least 1.
        max_nodes: most nodes there may be; at least as many as start nodes.
        n_iter_before_neuron_added: updates for each new node, at least 1.
        after_split_error_decay_rate, error_decay_rate: 0 to 1.
        min_distance_for_update: see above, at least 0; in the unit of the samples.
        n_start_nodes: at least 2; an array `init` says how many by itself.
        epochs: passes over the samples; it stops after one without any update.
        shuffle_data: whether each epoch takes the samples in a random order, or all as they are.
        init: "random" draws start nodes from the samples, with replacement, as neupy; or an array of start nodes, K x F.
        compatible: "neupy" or "fritzke".
        random_state: seed, generator or None, as everywhere in scikit-learn.

    Attributes:
        cluster_centers_, labels_: see CentroidClusterer; nodes from old to new.
        edges_: E x 2 int64, indices of nodes, the smaller one first, sorted.
        edge_ages_: E int64.
        errors_: K float64.
        n_epochs_: epochs run.

    Raises (`fit`):
        ClusteringError, a ValueError: a single sample, NaN or infinity, a parameter out of range.

    >>> import numpy as np
    >>> samples = np.random.default_rng(0).random((500, 2))
    >>> gas = GrowingNeuralGas(n_iter_before_neuron_added=100, epochs=2, random_state=0).fit(samples)
    >>> gas.cluster_centers_.shape
    (12, 2)
    """

    def __init__(
        self,
        *,
        step: float = 0.2,
        neighbour_step: float = 0.05,
        max_edge_age: int = 100,
        max_nodes: int = 1000,
        n_iter_before_neuron_added: int = 1000,
        after_split_error_decay_rate: float = 0.5,
        error_decay_rate: float = 0.995,
        min_distance_for_update: float = 0.0,
        n_start_nodes: int = 2,
        epochs: int = 100,
        shuffle_data: bool = False,
        init: Any = "random",
        compatible: str = "neupy",
        random_state: Any = None,
    ) -> None:
        self.step = step
        self.neighbour_step = neighbour_step
        self.max_edge_age = max_edge_age
        self.max_nodes = max_nodes
        self.n_iter_before_neuron_added = n_iter_before_neuron_added
        self.after_split_error_decay_rate = after_split_error_decay_rate
        self.error_decay_rate = error_decay_rate
        self.min_distance_for_update = min_distance_for_update
        self.n_start_nodes = n_start_nodes
        self.epochs = epochs
        self.shuffle_data = shuffle_data
        self.init = init
        self.compatible = compatible
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> "GrowingNeuralGas":  # noqa: N803
        """Learns from N x F samples; y is there for scikit-learn's sake."""
        samples = self._checked(X)
        rules = self._rules()
        if len(samples) < 2:
            raise ClusteringError("n_samples=1: growing neural gas needs at least 2 samples")
        random = check_random_state(self.random_state)
        count = self.n_start_nodes if isinstance(self.init, str) else len(self.init)
        require(is_whole(count, 2), "n_start_nodes", count, "at least 2 start nodes")
        require(count <= rules.max_nodes, "max_nodes", rules.max_nodes, f"at least the {count} start nodes")
        graph = new_graph(self._drawn(samples, count, random, replace=True), rules.max_nodes)
        progress = Progress(type(self).__name__, self.epochs)
        for epoch, order in enumerate(self._orders(len(samples), random)):
            updates = graph.counts[2]
            position, total = 0, 0.0
            while position < len(order):
                if graph.is_full:
                    graph = compacted(graph, rules.max_nodes)
                position, distances = learn(graph, samples, order, position, rules)
                total += distances
            progress.log(epoch, total / len(order))
            if graph.counts[2] == updates:
                break
        self.n_epochs_ = epoch + 1
        graph = compacted(graph, 0)
        self.cluster_centers_ = graph.weights[: graph.counts[1]].copy()
        self.errors_ = graph.errors[: graph.counts[1]].copy()
        self.edges_, self.edge_ages_ = graph.edges()
        self.labels_ = assign(samples, self.cluster_centers_)
        return self

    def _rules(self) -> Rules:
        self._check_parameters()
        require(self.compatible in ("neupy", "fritzke"), "compatible", self.compatible, '"neupy" or "fritzke"')
        require(is_number(self.step, 0, 1), "step", self.step, "a number above 0, at most 1")
        for name in ("neighbour_step", "after_split_error_decay_rate", "error_decay_rate"):
            value = getattr(self, name)
            require(value == 0 or is_number(value, 0, 1), name, value, "a number from 0 to 1")
        for name in ("max_edge_age", "max_nodes", "n_iter_before_neuron_added"):
            require(is_whole(getattr(self, name), 1), name, getattr(self, name), "a whole number, at least 1")
        distance = self.min_distance_for_update
        require(distance == 0 or is_number(distance, 0), "min_distance_for_update", distance, "a number, at least 0")
        neupy = self.compatible == "neupy"
        return Rules(
            float(self.step),
            float(self.neighbour_step),
            int(self.max_edge_age),
            int(self.max_nodes),
            int(self.n_iter_before_neuron_added),
            float(self.after_split_error_decay_rate),
            float(self.error_decay_rate),
            float(distance) ** 2 if neupy else float(distance),
            neupy,
        )
