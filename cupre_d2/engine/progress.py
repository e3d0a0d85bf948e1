"""Progress that people read: one line each few steps, with the time left for the stage and for the whole pipeline."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

logger = logging.getLogger(__name__)


class StageClock(HookBase):
    """Counts the seconds and steps of training of a stage, over all its restarts."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._last = time.perf_counter()

    def before_train(self) -> None:
        self._last = time.perf_counter()

    def after_step(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._last
        self.steps += 1
        self._last = now

    @property
    def pace(self) -> float:
        """Seconds a step; 0 before the first."""
        return self.seconds / self.steps if self.steps else 0.0

    # Not named as a hook's state_dict: hooks are registered when training starts, the clock is read before.
    def snapshot(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seconds, self.steps = state["seconds"], state["steps"]


@dataclass
class PipelinePace:
    """What is known of the stages beside the running one.

    Attributes:
        title: e.g. "stage 2/3 amt2".
        paces: seconds a step of finished stages, by trainer.
        later: trainer and number of steps of each stage still to come.
        done: steps of finished stages.
    """

    title: str = "stage"
    paces: dict[str, float] = field(default_factory=dict)
    later: list[tuple[str, int]] = field(default_factory=list)
    done: int = 0

    def seconds_later(self, current_pace: float) -> float:
        """Expected seconds of the later stages, at the pace of a finished stage of the same trainer or at the current."""
        return sum(self.paces.get(trainer, current_pace) * steps for trainer, steps in self.later)


class ProgressPrinter(EventWriter):
    """Logs losses, metrics and learning rates of the running stage."""

    def __init__(self, window: int, trainer: Any) -> None:
        self._window = window
        self._trainer = trainer

    def write(self) -> None:
        storage = get_event_storage()
        # Of AMT², what the phase that is not running put there is old.
        now = {name: value for name, (value, iteration) in storage.latest().items() if iteration == storage.iter}
        rates = [f"{name}: {value:.5g}" for name, value in now.items() if name == "lr" or name.endswith("/lr")]
        if storage.iter >= self._trainer.max_iter or not rates:
            # Hooks write once more after the last step, and also when the first step has failed.
            return
        shown = [name for name in now if "loss" in name or name in ("contrastive_accuracy", "embedding_std")]
        medians = {name: storage.history(name).median(storage.count_samples(name, self._window)) for name in shown}
        values = [f"{name}: {value:.4g}" for name, value in medians.items()]
        position = self._trainer.position()
        logger.info(
            f"iter: {storage.iter + 1}/{self._trainer.max_iter}  {position + '  ' if position else ''}"
            f"{'  '.join(values)}  time: {self._trainer.clock.pace:.3f}  {'  '.join(rates)}"
        )


class PipelineProgress(EventWriter):
    """Logs how much of the whole pipeline is done and when it will end."""

    def __init__(self, pace: PipelinePace, trainer: Any) -> None:
        self._pace = pace
        self._trainer = trainer

    def write(self) -> None:
        here, total = get_event_storage().iter + 1, self._trainer.max_iter
        if here > total or not self._trainer.clock.steps:
            return
        current = self._trainer.clock.pace
        left_here = current * (total - here)
        left = left_here + self._pace.seconds_later(current)
        steps = self._pace.done + total + sum(steps for _, steps in self._pace.later)
        share = 100 * (self._pace.done + here) / steps
        logger.info(
            f"{self._pace.title}: eta {timedelta(seconds=round(left_here))}  |  pipeline: {share:.0f} % of {steps} "
            f"iterations, eta {timedelta(seconds=round(left))}"
        )
