"""What is said of the time left."""

from dataclasses import dataclass

from cupre_d2.experiments.estimates import Paces, outlook, paces, time_left


@dataclass(frozen=True)
class Thing:
    kind: str
    work: int
    took: float | None = None

    def finished(self) -> bool:
        return self.took is not None

    def seconds(self) -> float | None:
        return self.took


def test_time_left_is_measured() -> None:
    measured = Paces()
    measured.add(Thing("a", 50), 100.0)
    measured.add(Thing("a", 50), 200.0)
    assert measured.of(Thing("a", 40)) == 120 and measured.of(Thing("b", 40)) is None
    assert time_left([Thing("a", 40), Thing("a", 80)], measured, slots=2) == "about 3 min left"
    unknown = time_left([Thing("a", 40), Thing("b", 1)], measured, slots=1)
    assert unknown == "about 2 min left and 1 tasks of which nothing is measured yet"


def test_what_is_finished_is_the_measure() -> None:
    things = [Thing("a", 10, 60.0), Thing("b", 1, 120.0), Thing("a", 20), Thing("b", 1)]
    assert paces(things).of(things[2]) == 120
    assert outlook(things, slots=2) == "2 of 4 done, about 2 min left"
