"""The compiled graph of a growing neural gas: nodes with weights and errors, edges with ages."""

from typing import NamedTuple

import numpy as np
from numba import njit

from cupre_d2.clustering.distances import move, squared_distance

NO_EDGE = -1
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

    Attributes:
        weights: capacity x F float64.
        errors: capacity float64.
        degrees: capacity int64, edges of each node.
        ages: capacity x capacity int32, symmetric; NO_EDGE where there is none.
        counts: 3 int64: slots in use, nodes alive, updates so far.
    """

    weights: np.ndarray
    errors: np.ndarray
    degrees: np.ndarray
    ages: np.ndarray
    counts: np.ndarray

    @property
    def alive(self) -> np.ndarray:
        """Slots of the nodes, in order."""
        return np.flatnonzero(self.errors[: self.counts[0]] >= 0)

    @property
    def is_full(self) -> bool:
        return bool(self.counts[0] == len(self.weights))


def new_graph(nodes: np.ndarray, max_nodes: int) -> Graph:
    """A graph of K x F start nodes, without edges."""
    graph = _empty(_capacity(len(nodes), max_nodes), nodes.shape[1])
    graph.weights[: len(nodes)] = nodes
    graph.errors[: len(nodes)] = 0
    graph.counts[:2] = len(nodes)
    return graph


def compacted(graph: Graph, max_nodes: int) -> Graph:
    """The same graph without the slots of dead nodes and with room for more, if `max_nodes` allows more."""
    alive = graph.alive
    count = len(alive)
    new = _empty(_capacity(count, max_nodes), graph.weights.shape[1])
    new.weights[:count] = graph.weights[alive]
    new.errors[:count] = graph.errors[alive]
    new.degrees[:count] = graph.degrees[alive]
    new.ages[:count, :count] = graph.ages[np.ix_(alive, alive)]
    new.counts[:] = count, count, graph.counts[2]
    return new


def _capacity(count: int, max_nodes: int) -> int:
    return max(count, min(2 * count, max_nodes)) + SPARE


def _empty(capacity: int, features: int) -> Graph:
    return Graph(
        np.full((capacity, features), np.inf),
        np.full(capacity, -1.0),
        np.zeros(capacity, np.int64),
        np.full((capacity, capacity), NO_EDGE, np.int32),
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
            graph.errors[winner] += distance
            _link(graph, winner, second)
            move(graph.weights[winner], sample, rules.step)
            _age_as_neupy(graph, winner, sample, rules)
        else:
            graph.errors[winner] += squared
            move(graph.weights[winner], sample, rules.step)
            _age_as_fritzke(graph, winner, second, sample, rules)
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
        distance = squared_distance(sample, weights[slot])
        if distance < smallest:
            second, next_smallest = winner, smallest
            winner, smallest = slot, distance
        elif distance < next_smallest:
            second, next_smallest = slot, distance
    return winner, second, smallest


@njit(cache=True, nogil=True)
def _age_as_neupy(graph: Graph, winner: int, sample: np.ndarray, rules: Rules) -> None:
    """Edges that have come to the greatest age go; others age, and their nodes follow the sample, the second too."""
    for slot in range(graph.counts[0]):
        age = graph.ages[winner, slot]
        if age == NO_EDGE:
            continue
        if age >= rules.max_edge_age:
            _unlink(graph, winner, slot)
        else:
            _set_age(graph, winner, slot, age + 1)
            move(graph.weights[slot], sample, rules.neighbour_step)


@njit(cache=True, nogil=True)
def _age_as_fritzke(graph: Graph, winner: int, second: int, sample: np.ndarray, rules: Rules) -> None:
    """Edges age, their nodes follow the sample, the second gets a young edge, and edges above the greatest age go."""
    for slot in range(graph.counts[0]):
        age = graph.ages[winner, slot]
        if age != NO_EDGE:
            _set_age(graph, winner, slot, age + 1)
            move(graph.weights[slot], sample, rules.neighbour_step)
    _link(graph, winner, second)
    for slot in range(graph.counts[0]):
        if graph.ages[winner, slot] > rules.max_edge_age:
            _unlink(graph, winner, slot)


@njit(cache=True, nogil=True)
def _split(graph: Graph, rules: Rules) -> None:
    """A new node halfway between the node of the largest error and the neighbour of it that has the largest error.

    Nothing happens where that node has no neighbour: all errors are 0 then, as samples equal their winners.
    """
    slots = graph.counts[0]
    worst = np.argmax(graph.errors[:slots])
    neighbour = NO_EDGE
    for slot in range(slots):
        if graph.ages[worst, slot] != NO_EDGE and (neighbour == NO_EDGE or graph.errors[slot] > graph.errors[neighbour]):
            neighbour = slot
    if neighbour == NO_EDGE:
        return
    for slot in (worst, neighbour):
        graph.errors[slot] *= rules.after_split_error_decay_rate
    for feature in range(graph.weights.shape[1]):
        graph.weights[slots, feature] = 0.5 * (graph.weights[worst, feature] + graph.weights[neighbour, feature])
    graph.errors[slots] = 0.0 if rules.neupy else graph.errors[worst]
    graph.counts[0] += 1
    graph.counts[1] += 1
    _link(graph, worst, slots)
    _link(graph, neighbour, slots)
    _unlink(graph, worst, neighbour)


@njit(cache=True, nogil=True)
def _set_age(graph: Graph, one: int, other: int, age: int) -> None:
    graph.ages[one, other] = age
    graph.ages[other, one] = age


@njit(cache=True, nogil=True)
def _link(graph: Graph, one: int, other: int) -> None:
    """An edge of age 0, new or not."""
    if graph.ages[one, other] == NO_EDGE:
        graph.degrees[one] += 1
        graph.degrees[other] += 1
    _set_age(graph, one, other, 0)


@njit(cache=True, nogil=True)
def _unlink(graph: Graph, one: int, other: int) -> None:
    """Takes an edge away, and with it the other node if that was its last; `one` has another edge."""
    _set_age(graph, one, other, NO_EDGE)
    graph.degrees[one] -= 1
    graph.degrees[other] -= 1
    if graph.degrees[other] == 0:
        graph.weights[other, :] = np.inf
        graph.errors[other] = -1.0
        graph.counts[1] -= 1
