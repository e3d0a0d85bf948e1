"""The compiled graph of a growing neural gas: nodes with weights and errors, edges with ages."""

from typing import NamedTuple

import numpy as np
from numba import njit

from cupre_d2.clustering.distances import move, squared_distance

# Room for nodes that die between two compactions.
SPARE = 64


class Rules(NamedTuple):
    """The parameters of GrowingNeuralGas, checked.

    Attributes:
        threshold: samples whose distance to the winner is below this are passed over.
        neupy: whether the rule is neupy's, else Fritzke's.
    """

    step: float
    neighbour_step: float
    max_edge_age: int
    max_nodes: int
    n_iter_before_neuron_added: int
    after_split_error_decay_rate: float
    error_decay_rate: float
    threshold: float
    neupy: bool


class Graph(NamedTuple):
    """Arrays with a row for each of `capacity` slots, filled from the first, oldest node first.

    A node that dies leaves its slot behind: weights of infinity, to which no sample is near, and an error of -1, which is
    never the largest. So no other node has to be renumbered while samples come.

    Each win of a node ages all its edges by 1, so the age of an edge is the wins of its two nodes less what they were when
    it was made: ageing writes one number, not one an edge.

    Attributes:
        weights: capacity x F float64.
        errors: capacity float64.
        wins: capacity int64, updates in which the node was the winner.
        degrees: capacity int64, edges of each node.
        neighbours: capacity x capacity int32; the first entries of a row, as many as its degree, are the slots of the
            node's neighbours, in any order.
        births: capacity x capacity int64; for each entry of `neighbours`, the wins of both nodes at which its age was 0.
        counts: 3 int64: slots in use, nodes alive, updates so far.
    """

    weights: np.ndarray
    errors: np.ndarray
    wins: np.ndarray
    degrees: np.ndarray
    neighbours: np.ndarray
    births: np.ndarray
    counts: np.ndarray

    @property
    def is_full(self) -> bool:
        return bool(self.counts[0] == len(self.weights))

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """E x 2 int64 slots, the smaller first, sorted; and E int64 ages."""
        used = np.arange(self.neighbours.shape[1]) < self.degrees[:, None]
        ones, others = np.repeat(np.arange(len(self.degrees)), self.degrees), self.neighbours[used].astype(np.int64)
        ages = self.wins[ones] + self.wins[others] - self.births[used]
        order = np.lexsort((others, ones))
        order = order[ones[order] < others[order]]
        return np.stack([ones, others], axis=1)[order], ages[order]


def new_graph(nodes: np.ndarray, max_nodes: int) -> Graph:
    """A graph of K x F start nodes, without edges."""
    graph = _empty(_capacity(len(nodes), max_nodes), nodes.shape[1])
    graph.weights[: len(nodes)] = nodes
    graph.errors[: len(nodes)] = 0
    graph.counts[:2] = len(nodes)
    return graph


def compacted(graph: Graph, max_nodes: int) -> Graph:
    """The same graph without the slots of dead nodes and with room for more, if `max_nodes` allows more."""
    alive = np.flatnonzero(graph.errors[: graph.counts[0]] >= 0)
    count = len(alive)
    new = _empty(_capacity(count, max_nodes), graph.weights.shape[1])
    new.weights[:count] = graph.weights[alive]
    new.errors[:count] = graph.errors[alive]
    new.wins[:count] = graph.wins[alive]
    new.degrees[:count] = graph.degrees[alive]
    new_slots = np.zeros(len(graph.weights), np.int32)
    new_slots[alive] = np.arange(count)
    most = int(graph.degrees.max())
    new.neighbours[:count, :most] = new_slots[graph.neighbours[alive, :most]]
    new.births[:count, :most] = graph.births[alive, :most]
    new.counts[:] = count, count, graph.counts[2]
    return new


def _capacity(count: int, max_nodes: int) -> int:
    return max(count, min(2 * count, max_nodes)) + SPARE


def _empty(capacity: int, features: int) -> Graph:
    return Graph(
        np.full((capacity, features), np.inf),
        np.full(capacity, -1.0),
        np.zeros(capacity, np.int64),
        np.zeros(capacity, np.int64),
        np.zeros((capacity, capacity), np.int32),
        np.zeros((capacity, capacity), np.int64),
        np.zeros(3, np.int64),
    )


@njit(cache=True, nogil=True)
def learn(graph: Graph, samples: np.ndarray, order: np.ndarray, start: int, rules: Rules) -> tuple[int, float]:
    """Takes samples in this order, from position `start`, until all are taken or no slot is left for a new node.

    Returns:
        The position it came to, and the sum of distances to the winner.
    """
    counts = graph.counts
    total = 0.0
    for position in range(start, len(order)):
        if counts[0] == len(graph.weights):
            return position, total
        sample = samples[order[position]]
        winner, second, squared = _two_nearest(graph.weights[: counts[0]], sample)
        distance = np.sqrt(squared)
        total += distance
        if distance < rules.threshold:
            continue
        counts[2] += 1
        if rules.neupy:
            # Edges that have come to the greatest age go; others age, and their nodes follow the sample, the second too.
            graph.errors[winner] += distance
            _link(graph, winner, second)
            move(graph.weights, winner, sample, rules.step)
            _drop_edges(graph, winner, rules.max_edge_age)
            _age_and_pull(graph, winner, sample, rules)
        else:
            # Edges age, their nodes follow the sample, the second gets a young edge, and edges above the greatest age go.
            graph.errors[winner] += squared
            move(graph.weights, winner, sample, rules.step)
            _age_and_pull(graph, winner, sample, rules)
            _link(graph, winner, second)
            _drop_edges(graph, winner, rules.max_edge_age + 1)
        if counts[2] % rules.n_iter_before_neuron_added == 0 and counts[1] < rules.max_nodes:
            _split(graph, rules)
        for slot in range(counts[0]):
            # Those of dead nodes stay below zero.
            graph.errors[slot] *= rules.error_decay_rate
    return len(order), total


@njit(cache=True, nogil=True)
def _two_nearest(weights: np.ndarray, sample: np.ndarray) -> tuple[int, int, float]:
    """The nearest and the second nearest node, and the squared distance of the first."""
    winner = second = 0
    smallest = next_smallest = np.inf
    for slot in range(len(weights)):
        distance = squared_distance(sample, weights, slot)
        if distance < next_smallest:
            if distance < smallest:
                second, next_smallest = winner, smallest
                winner, smallest = slot, distance
            else:
                second, next_smallest = slot, distance
    return winner, second, smallest


@njit(cache=True, nogil=True)
def _age_and_pull(graph: Graph, winner: int, sample: np.ndarray, rules: Rules) -> None:
    graph.wins[winner] += 1
    for slot in graph.neighbours[winner, : graph.degrees[winner]]:
        move(graph.weights, slot, sample, rules.neighbour_step)


@njit(cache=True, nogil=True)
def _drop_edges(graph: Graph, winner: int, age: int) -> None:
    """Takes away the edges that are so old or older, and nodes that are left without any."""
    # Backwards, as an edge that goes is replaced by the last.
    for place in range(graph.degrees[winner] - 1, -1, -1):
        slot = graph.neighbours[winner, place]
        if graph.wins[winner] + graph.wins[slot] - graph.births[winner, place] >= age:
            _unlink(graph, winner, slot)


@njit(cache=True, nogil=True)
def _split(graph: Graph, rules: Rules) -> None:
    """A new node halfway between the node of the largest error and the neighbour of it that has the largest error.

    Nothing happens where that node has no neighbour: all errors are 0 then, as samples equal their winners.
    """
    new = graph.counts[0]
    worst = int(np.argmax(graph.errors[:new]))
    if graph.degrees[worst] == 0:
        return
    neighbour = graph.neighbours[worst, 0]
    for slot in graph.neighbours[worst, 1 : graph.degrees[worst]]:
        error, largest = graph.errors[slot], graph.errors[neighbour]
        if error > largest or (error == largest and slot < neighbour):
            neighbour = slot
    graph.errors[worst] *= rules.after_split_error_decay_rate
    graph.errors[neighbour] *= rules.after_split_error_decay_rate
    for feature in range(graph.weights.shape[1]):
        graph.weights[new, feature] = 0.5 * (graph.weights[worst, feature] + graph.weights[neighbour, feature])
    graph.errors[new] = 0.0 if rules.neupy else graph.errors[worst]
    graph.counts[0] += 1
    graph.counts[1] += 1
    _link(graph, worst, new)
    _link(graph, neighbour, new)
    _unlink(graph, worst, neighbour)


@njit(cache=True, nogil=True)
def _place(graph: Graph, node: int, neighbour: int) -> int:
    """Where a node's list of neighbours has this one; its degree, if it has not."""
    place = 0
    while place < graph.degrees[node] and graph.neighbours[node, place] != neighbour:
        place += 1
    return place


@njit(cache=True, nogil=True)
def _link(graph: Graph, one: int, other: int) -> None:
    """An edge of age 0, new or not."""
    place, back = _place(graph, one, other), _place(graph, other, one)
    if place == graph.degrees[one]:
        graph.neighbours[one, place] = other
        graph.neighbours[other, back] = one
        graph.degrees[one] += 1
        graph.degrees[other] += 1
    graph.births[one, place] = graph.births[other, back] = graph.wins[one] + graph.wins[other]


@njit(cache=True, nogil=True)
def _unlink(graph: Graph, one: int, other: int) -> None:
    """Takes an edge away, and with it the other node if that was its last; `one` has another edge."""
    _forget(graph, one, other)
    _forget(graph, other, one)
    if graph.degrees[other] == 0:
        graph.weights[other, :] = np.inf
        graph.errors[other] = -1.0
        graph.counts[1] -= 1


@njit(cache=True, nogil=True)
def _forget(graph: Graph, node: int, neighbour: int) -> None:
    """The last of a node's neighbours takes the place of this one."""
    place, last = _place(graph, node, neighbour), graph.degrees[node] - 1
    graph.neighbours[node, place] = graph.neighbours[node, last]
    graph.births[node, place] = graph.births[node, last]
    graph.degrees[node] = last
