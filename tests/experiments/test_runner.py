"""Order, threads, failures, and what is said of the time left."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cupre_d2.engine.preemption import RESUME_ME
from cupre_d2.errors import ResultsError
from cupre_d2.experiments import engines, runner
from cupre_d2.experiments.engines import LocalEngine
from cupre_d2.experiments.runner import TaskError, paces, run, time_left
from cupre_d2.experiments.tasks import read_seconds


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

    @property
    def timing(self) -> Path:
        return self.folder / f"{self.key}.timing.json"

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
    run({script.key: script for script in scripts}, LocalEngine(jobs), outlook)
    assert started(tmp_path) == ["a", "b", "c"]
    run({script.key: script for script in scripts}, LocalEngine(jobs), outlook)
    assert started(tmp_path) == ["a", "b", "c"]


def test_what_holds_up_most_goes_first(tmp_path: Path) -> None:
    scripts = [Script("alone", tmp_path), Script("last", tmp_path, ("first",)), Script("first", tmp_path)]
    run({script.key: script for script in scripts}, LocalEngine(1), outlook)
    assert started(tmp_path) == ["first", "alone", "last"]


def test_a_failure_stops_those_that_need_it_alone(tmp_path: Path) -> None:
    bad = Script("bad", tmp_path, code="print('first'); sys.exit('what went wrong')")
    scripts = [bad, Script("later", tmp_path, ("bad",)), Script("other", tmp_path)]
    with pytest.raises(TaskError, match="^bad failed: what went wrong .*bad.txt"):
        run({script.key: script for script in scripts}, LocalEngine(1), outlook)
    assert sorted(started(tmp_path)) == ["bad", "other"]
    assert "first" in bad.log.read_text()


def test_a_process_that_leaves_no_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="empty failed: it printed nothing"):
        run({"empty": Script("empty", tmp_path, code="sys.exit(0)")}, LocalEngine(1), outlook)


# Of a process that first writes what it has.
LEAVES_SLOWLY = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(0)))\n"


@pytest.mark.parametrize(("code", "again"), [("", False), (LEAVES_SLOWLY, True)])
def test_signals_end_the_processes_too(code: str, again: bool, tmp_path: Path) -> None:
    alive = tmp_path / "pid"
    code = f"import time\n{code}open({str(alive)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    main = f"""
from pathlib import Path
from cupre_d2.engine.preemption import watching
from cupre_d2.experiments.engines import LocalEngine
from cupre_d2.experiments.runner import run
from tests.experiments.test_runner import Script, outlook
with watching():
    run({{"long": Script("long", Path({str(tmp_path)!r}), code={code!r})}}, LocalEngine(1), outlook)
"""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", main])
    wait_for(lambda: alive.is_file() and alive.read_text() != "")
    process.send_signal(signal.SIGUSR1)
    if again:
        # It must not break off what the first has begun.
        time.sleep(0.5)
        process.terminate()
    assert process.wait(60) == RESUME_ME
    assert not Path("/proc", alive.read_text()).exists()


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.02)
    pytest.fail("nothing happened for a minute")


def running(process_id: str) -> bool:
    """Not so a zombie, which nobody has asked for its exit code yet."""
    try:
        return "State:\tZ" not in Path("/proc", process_id, "status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("jobs", "needs", "threads"),
    [
        (1, {"a": (), "b": ()}, {"a": 6, "b": 6}),
        # Nothing can run beside the first; then two share the cores.
        (2, {"a": (), "b": ("a",), "c": ("a",)}, {"a": 6, "b": 3, "c": 3}),
        (4, {"a": (), "b": (), "c": ()}, {"a": 2, "b": 2, "c": 2}),
        (9, {key: () for key in "abcdefg"}, dict.fromkeys("abcdefg", 1)),
    ],
)
def test_cores_are_divided_by_what_can_run(
    jobs: int, needs: dict, threads: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.os, "sched_getaffinity", lambda process: set(range(6)))
    code = "import time; print(os.environ['OMP_NUM_THREADS']); time.sleep(2.5)"
    run({key: Script(key, tmp_path, needed, code) for key, needed in needs.items()}, LocalEngine(jobs), outlook)
    assert {key: int((tmp_path / f"{key}.txt").read_text()) for key in needs} == threads


def test_each_process_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import time; print(os.environ.get('CUDA_VISIBLE_DEVICES')); time.sleep(0.5)"
    for named, expected in (("4,6", {"4", "6"}), ("", {"None"})):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        if not named:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        keys = [f"{key}{named}" for key in "ab"]
        run({key: Script(key, tmp_path, code=code) for key in keys}, LocalEngine(2), outlook)
        assert {(tmp_path / f"{key}.txt").read_text().strip() for key in keys} == expected


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Even where that was killed: the next run would train beside them."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    log, timing = tmp_path / "log", tmp_path / "timing"
    start = f"Attempt([sys.executable, '-c', {child!r}], Path({str(log)!r}), Path({str(timing)!r}), dict(os.environ))"
    code = f"import os, sys\nfrom pathlib import Path\nfrom cupre_d2.experiments.engines import Attempt\n{start}\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        wait_for(lambda: log.is_file() and log.read_text().strip() != "")
        parent.kill()
    child_id = log.read_text().strip()
    wait_for(lambda: not running(child_id))
    assert not running(child_id)


def test_seconds_of_all_attempts_are_added(tmp_path: Path) -> None:
    wait, again = "import time; time.sleep(0.3)", Script("a", tmp_path)
    with pytest.raises(TaskError):
        run({"a": Script("a", tmp_path, code=f"{wait}; sys.exit(1)")}, LocalEngine(1), outlook)
    first = read_seconds(again.timing)
    assert first is not None and 0.3 <= first < 30
    run({"a": Script("a", tmp_path, code=wait)}, LocalEngine(1), outlook)
    both = read_seconds(again.timing)
    assert both is not None and first + 0.3 <= both < 60


def test_an_interrupted_attempt_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script("a", tmp_path, code="import time; time.sleep(600)")

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run({"a": script}, LocalEngine(1), outlook)
    assert (read_seconds(script.timing) or 0) > 0


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seconds": null}'])
def test_a_broken_timing_is_said_before_the_process_starts(content: str, tmp_path: Path) -> None:
    script = Script("a", tmp_path)
    script.timing.write_text(content)
    with pytest.raises(ResultsError, match="a.timing.json: broken .*; remove it"):
        run({"a": script}, LocalEngine(1), outlook)
    assert not (tmp_path / "order").exists()


@dataclass(frozen=True)
class Thing:
    kind: str
    work: int
    took: float | None = None

    def finished(self) -> bool:
        return self.took is not None

    def seconds(self) -> float | None:
        return self.took


def test_what_is_finished_is_the_measure() -> None:
    things = [Thing("a", 50, 100.0), Thing("a", 50, 200.0), Thing("b", 1, 6.0)]
    assert paces(things) == {"a": 3.0, "b": 6.0}
    assert time_left(things, 1) == "0 of 3 to run"
    assert time_left([*things, Thing("a", 40), Thing("a", 80)], 2) == "2 of 5 to run, about 3 min left"
    unknown = time_left([*things, Thing("a", 40), Thing("c", 80)], 1)
    assert unknown == "2 of 5 to run, about 2 min left and 1 tasks of which nothing is measured yet"
    assert time_left([*things, Thing("c", 80)], 1) == "1 of 4 to run, time unknown: nothing like them is measured yet"
