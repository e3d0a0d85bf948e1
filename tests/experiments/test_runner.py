"""Order, threads, failures, and what is said of the time left."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cupre_d2.engine.results import StageRecord
from cupre_d2.experiments import runner
from cupre_d2.experiments.runner import Paces, TaskError, run, time_left
from cupre_d2.experiments.tasks import Task


@dataclass(frozen=True)
class Script:
    """Python that is finished when it has written its file."""

    key: str
    folder: Path
    needs: tuple[str, ...] = ()
    code: str = ""

    @property
    def log(self) -> Path:
        return self.folder / f"{self.key}.txt"

    def finished(self) -> bool:
        return (self.folder / self.key).is_file()

    def prepare(self) -> list[str]:
        note = f"open({str(self.folder / 'order')!r}, 'a').write({self.key + ' '!r})"
        done = f"open({str(self.folder / self.key)!r}, 'w')"
        return [sys.executable, "-c", f"import os, sys\n{note}\n{self.code}\n{done}"]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)


def started(folder: Path) -> list[str]:
    return (folder / "order").read_text().split()


def outlook() -> str:
    return "some left"


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_after_what_it_needs(jobs: int, tmp_path: Path) -> None:
    scripts = [Script("c", tmp_path, ("a", "b")), Script("b", tmp_path, ("a",)), Script("a", tmp_path)]
    run({script.key: script for script in scripts}, jobs, outlook)
    assert started(tmp_path) == ["a", "b", "c"]
    run({script.key: script for script in scripts}, jobs, outlook)
    assert started(tmp_path) == ["a", "b", "c"]


def test_what_holds_up_most_goes_first(tmp_path: Path) -> None:
    scripts = [Script("alone", tmp_path), Script("last", tmp_path, ("first",)), Script("first", tmp_path)]
    run({script.key: script for script in scripts}, 1, outlook)
    assert started(tmp_path) == ["first", "alone", "last"]


def test_a_failure_stops_those_that_need_it_alone(tmp_path: Path) -> None:
    bad = Script("bad", tmp_path, code="print('first'); sys.exit('what went wrong')")
    scripts = [bad, Script("later", tmp_path, ("bad",)), Script("other", tmp_path)]
    with pytest.raises(TaskError, match="^bad failed: what went wrong .*bad.txt"):
        run({script.key: script for script in scripts}, 1, outlook)
    assert sorted(started(tmp_path)) == ["bad", "other"]
    assert "first" in bad.log.read_text()


def test_a_process_that_leaves_no_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="empty failed: it printed nothing"):
        run({"empty": Script("empty", tmp_path, code="sys.exit(0)")}, 1, outlook)


def test_sigterm_ends_the_processes_too(tmp_path: Path) -> None:
    alive = tmp_path / "pid"
    code = f"open({str(alive)!r}, 'w').write(str(os.getpid()))\nimport time\ntime.sleep(600)"
    main = f"""
from pathlib import Path
from cupre_d2.experiments.runner import run
from tests.experiments.test_runner import Script, outlook
run({{"long": Script("long", Path({str(tmp_path)!r}), code={code!r})}}, 1, outlook)
"""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", main])
    wait_for(lambda: alive.is_file() and alive.read_text() != "")
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    wait_for(lambda: not Path("/proc", alive.read_text()).exists())


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.02)
    pytest.fail("nothing happened for a minute")


def test_threads_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda process: set(range(6)))
    assert [runner.environment(jobs)["OMP_NUM_THREADS"] for jobs in (1, 2, 4, 9)] == ["6", "3", "1", "1"]
    run({"a": Script("a", tmp_path, code="print(os.environ['OMP_NUM_THREADS'])")}, 2, outlook)
    assert (tmp_path / "a.txt").read_text() == "3\n"


def task(stage: str, iterations: int) -> Task:
    return Task(f"{stage}-1", stage, "DetectionTrainer", Path(stage), "", (), iterations)


def test_time_left_is_measured() -> None:
    measured = Paces()
    measured.add("a", StageRecord("a", "DetectionTrainer", 100.0, 50, {}))
    measured.add("a", StageRecord("a", "DetectionTrainer", 200.0, 50, {}))
    assert measured.of(task("a", 40)) == 120 and measured.of(task("b", 40)) is None
    assert time_left([task("a", 40), task("a", 80)], measured, jobs=2) == "about 3 min left"
    assert time_left([task("a", 40), task("b", 1)], measured, jobs=1).endswith("1 tasks of which nothing is measured yet")
