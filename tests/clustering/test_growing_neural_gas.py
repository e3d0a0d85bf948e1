"""Against neupy's rule, written down plainly with nodes as objects, and Fritzke's."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from cupre_d2.clustering import GrowingNeuralGas
from cupre_d2.errors import ClusteringError, CupreError

PAPER = {"step": 0.1, "neighbour_step": 0.001, "max_edge_age": 50, "n_iter_before_neuron_added": 100}


@dataclass(eq=False, repr=False)
class Node:
    weights: np.ndarray
    error: float = 0.0
    # By identity: the age of the edge to each neighbour.
    ages: dict["Node", int] = field(default_factory=dict)


class PlainGas:
    """The rule as shared facts describe it, one statement a line; of equals the first."""

    def __init__(
        self, start: np.ndarray, max_nodes: int, threshold: float = 0.0, neupy: bool = True, max_edge_age: int = 50
    ) -> None:
        self.nodes = [Node(weights.copy()) for weights in start]
        self.max_nodes = max_nodes
        self.threshold = threshold
        self.max_edge_age = max_edge_age
        self.neupy = neupy
        self.updates = 0

    def learn(self, samples: np.ndarray) -> None:
        for sample in samples:
            self.take(sample)

    def take(self, sample: np.ndarray) -> None:
        distances = np.linalg.norm(np.array([node.weights for node in self.nodes]) - sample, axis=1)
        first, second = np.argsort(distances, kind="stable")[:2]
        winner, runner_up, distance = self.nodes[first], self.nodes[second], float(distances[first])
        if distance < (self.threshold**2 if self.neupy else self.threshold):
            return
        self.updates += 1
        winner.error += distance if self.neupy else distance**2
        winner.weights += PAPER["step"] * (sample - winner.weights)
        if self.neupy:
            winner.ages[runner_up] = runner_up.ages[winner] = 0
            for node in list(winner.ages):
                if winner.ages[node] >= self.max_edge_age:
                    self.cut(winner, node)
                else:
                    self.age_and_follow(winner, node, sample)
        else:
            for node in winner.ages:
                self.age_and_follow(winner, node, sample)
            winner.ages[runner_up] = runner_up.ages[winner] = 0
            for node in [node for node, age in winner.ages.items() if age > self.max_edge_age]:
                self.cut(winner, node)
        if self.updates % PAPER["n_iter_before_neuron_added"] == 0 and len(self.nodes) < self.max_nodes:
            self.grow()
        for node in self.nodes:
            node.error *= 0.995

    def age_and_follow(self, winner: Node, node: Node, sample: np.ndarray) -> None:
        winner.ages[node] = node.ages[winner] = winner.ages[node] + 1
        node.weights += PAPER["neighbour_step"] * (sample - node.weights)

    def cut(self, winner: Node, node: Node) -> None:
        del winner.ages[node], node.ages[winner]
        if not node.ages:
            self.nodes.remove(node)

    def grow(self) -> None:
        worst = max(self.nodes, key=lambda node: node.error)
        neighbour = max((node for node in self.nodes if node in worst.ages), key=lambda node: node.error)
        worst.error *= 0.5
        neighbour.error *= 0.5
        new = Node((worst.weights + neighbour.weights) / 2, 0.0 if self.neupy else worst.error)
        self.nodes.append(new)
        del worst.ages[neighbour], neighbour.ages[worst]
        for node in (worst, neighbour):
            node.ages[new] = new.ages[node] = 0

    @property
    def edges(self) -> dict[tuple[int, int], int]:
        places = {node: place for place, node in enumerate(self.nodes)}
        return {
            (place, places[other]): age
            for node, place in places.items()
            for other, age in node.ages.items()
            if place < places[other]
        }


def make(seed: int, count: int = 2000, features: int = 32) -> np.ndarray:
    random = np.random.default_rng(seed)
    centers = random.normal(0, 1, (20, features))
    return centers[random.integers(20, size=count)] + random.normal(0, 0.4, (count, features))


def same(gas: GrowingNeuralGas, plain: PlainGas) -> None:
    assert dict(zip(map(tuple, gas.edges_.tolist()), gas.edge_ages_.tolist(), strict=True)) == plain.edges
    np.testing.assert_allclose(gas.cluster_centers_, [node.weights for node in plain.nodes], rtol=0, atol=1e-8)
    np.testing.assert_allclose(gas.errors_, [node.error for node in plain.nodes], rtol=1e-8)


@pytest.mark.parametrize("compatible", ["neupy", "fritzke"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nodes_edges_and_ages_of_the_plain_rule(seed: int, compatible: str) -> None:
    samples = make(seed)
    # The first five twice: neupy draws start nodes with replacement.
    start = samples[[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    gas = GrowingNeuralGas(**PAPER, init=start, epochs=5, max_nodes=90, min_distance_for_update=0.2, compatible=compatible)
    gas.fit(samples)
    plain = PlainGas(start, max_nodes=90, threshold=0.2, neupy=compatible == "neupy")
    for _ in range(5):
        plain.learn(samples)
    assert gas.n_epochs_ == 5 and len(gas.edges_) > 100
    same(gas, plain)


@pytest.mark.parametrize("compatible", ["neupy", "fritzke"])
def test_nodes_die_and_room_for_more_is_made(compatible: str) -> None:
    """Samples that wander away leave nodes behind, whose edges grow old; many are born and die."""
    samples = make(3, 2500, 2)
    samples += np.linspace(0, 30, len(samples))[:, None]
    start = samples[:2]
    settings = {**PAPER, "max_edge_age": 9}
    gas = GrowingNeuralGas(**settings, init=start, epochs=4, max_nodes=400, compatible=compatible).fit(samples)
    plain = PlainGas(start, 400, neupy=compatible == "neupy", max_edge_age=9)
    for _ in range(4):
        plain.learn(samples)
    # More slots were used than the graph first had, and one update in a hundred gave a node.
    assert 70 < len(plain.nodes) < 2 + 10_000 / 100
    same(gas, plain)


def test_the_squared_threshold_is_neupy_s_quirk() -> None:
    """Two nodes, samples at 0.1 from them: above 0.2², below 0.2."""
    start = np.array([[0.0], [1.0]])
    samples = np.array([[0.1], [0.9]])
    quirk = GrowingNeuralGas(init=start, min_distance_for_update=0.2, epochs=3).fit(samples)
    published = GrowingNeuralGas(init=start, min_distance_for_update=0.2, epochs=3, compatible="fritzke").fit(samples)
    assert quirk.n_epochs_ == 3 and not np.array_equal(quirk.cluster_centers_, start)
    assert published.n_epochs_ == 1 and np.array_equal(published.cluster_centers_, start)


def test_shuffled_and_drawn_by_random_state() -> None:
    samples = make(0, 300, 4)
    fits = [
        GrowingNeuralGas(n_iter_before_neuron_added=50, epochs=3, shuffle_data=True, random_state=seed).fit(samples)
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(fits[0].cluster_centers_, fits[1].cluster_centers_)
    assert np.array_equal(fits[0].edges_, fits[1].edges_) and np.array_equal(fits[0].labels_, fits[1].labels_)
    assert not np.array_equal(fits[0].cluster_centers_, fits[2].cluster_centers_)


def test_the_paper_s_growth() -> None:
    """50 nodes an epoch of 5,000 samples: after ten epochs the 500 the paper names."""
    gas = GrowingNeuralGas(**PAPER, min_distance_for_update=0.2, n_start_nodes=5, epochs=10, random_state=0)
    gas.fit(make(0, 5000))
    assert 450 < len(gas.cluster_centers_) <= 505


def test_samples_all_equal() -> None:
    samples = np.ones((50, 3))
    with pytest.warns(ConvergenceWarning, match="all samples are equal"):
        gas = GrowingNeuralGas(min_distance_for_update=0.2, random_state=0).fit(samples)
    assert gas.n_epochs_ == 1 and len(gas.cluster_centers_) == 2 and not gas.labels_.any()
    with pytest.warns(ConvergenceWarning):
        gas = GrowingNeuralGas(n_iter_before_neuron_added=10, epochs=2, random_state=0).fit(samples)
    assert np.array_equal(np.unique(gas.cluster_centers_), [1.0])


def test_errors_of_zero_and_no_edge_add_no_node() -> None:
    """Node 0 never wins, and all errors are 0: it is the one to split and has no neighbour."""
    start = np.array([[9.0], [1.0], [1.0]])
    with pytest.warns(ConvergenceWarning):
        gas = GrowingNeuralGas(init=start, n_iter_before_neuron_added=1, epochs=2).fit(np.ones((4, 1)))
    assert len(gas.cluster_centers_) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 0}, "step 0: expected a number above 0, at most 1"),
        ({"neighbour_step": -0.1}, "neighbour_step -0.1: expected"),
        ({"max_edge_age": 0}, "max_edge_age 0: expected a whole number, at least 1"),
        ({"n_start_nodes": 1}, "n_start_nodes 1: expected at least 2"),
        ({"n_start_nodes": 5, "max_nodes": 4}, "max_nodes 4: expected at least the 5 start nodes"),
        ({"min_distance_for_update": -1}, "min_distance_for_update -1: expected"),
        ({"epochs": 0}, "epochs 0: expected a whole number"),
        ({"compatible": "matlab"}, "compatible 'matlab': expected"),
        ({"init": "first"}, "init 'first': expected"),
        ({"init": np.zeros((3, 5))}, r"init of shape \(3, 5\); expected finite start nodes, 3 x 4 numbers"),
        ({"init": [[0, 0, 0, np.nan], [1, 1, 1, 1]]}, "init of shape"),
    ],
)
def test_bad_parameters(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ClusteringError, match=message) as raised:
        GrowingNeuralGas(**settings).fit(make(0, 20, 4))
    assert isinstance(raised.value, CupreError) and isinstance(raised.value, ValueError)
    assert "\n" not in str(raised.value)


def test_a_single_sample() -> None:
    with pytest.raises(ClusteringError, match="n_samples=1: growing neural gas needs at least 2 samples"):
        GrowingNeuralGas().fit([[1.0, 2.0]])
