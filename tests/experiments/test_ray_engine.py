"""Processes on a real cluster of one machine, where Ray is installed; they train nothing."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cupre_d2.errors import ConfigError
from cupre_d2.experiments import runner
from cupre_d2.experiments.engines import RayEngine, Share, share
from cupre_d2.experiments.runner import TaskError, run
from cupre_d2.experiments.tasks import read_seconds
from tests.experiments.test_runner import Script, outlook, started, wait_for


def test_shares() -> None:
    assert Share(4, 0).fits({"CPU": 15.0}) == 3
    assert Share(1, 0.3333).fits({"CPU": 8.0, "GPU": 1.0}) == 3
    assert Share(4, 1).fits({"CPU": 8.0, "GPU": 8.0}) == 2 and Share(4, 1).fits({"CPU": 8.0}) == 0
    assert share([{"CPU": 2.0}], jobs=5) == Share(1, 0)
    assert share([{"CPU": 64.0, "GPU": 8.0}], jobs=1) == Share(64, 1)
    assert share([{"CPU": 64.0, "GPU": 1.0}], jobs=3) == Share(21, 0.3333)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^--engine ray: Ray is not installed; pip install -e '.\[ray\]'$"):
        RayEngine(1)


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="^--engine ray: no cluster at RAY_ADDRESS=127.0.0.1:1 .*refused"):
        RayEngine(1)


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield RayEngine(1)
    ray.shutdown()


@pytest.mark.slow
def test_on_a_cluster(engine: RayEngine, tmp_path: Path) -> None:
    scripts = [
        Script("c", tmp_path, ("a", "b")),
        Script("b", tmp_path, ("a",), "print(os.getcwd(), os.environ['OMP_NUM_THREADS'])"),
        Script("a", tmp_path),
    ]
    run({script.key: script for script in scripts}, engine, outlook)
    assert started(tmp_path) == ["a", "b", "c"]
    (machine,) = engine._machines()
    assert (tmp_path / "b.txt").read_text() == f"{Path.cwd()} {int(machine['CPU'])}\n"
    assert engine.slots == 1
    assert 0 < (read_seconds(scripts[0].timing) or 0) < 60


@pytest.mark.slow
def test_a_failure_on_a_cluster(engine: RayEngine, tmp_path: Path) -> None:
    bad = Script("bad", tmp_path, code="sys.exit('what went wrong')")
    with pytest.raises(TaskError, match="^bad failed: what went wrong .*bad.txt"):
        run({"bad": bad, "later": Script("later", tmp_path, ("bad",))}, engine, outlook)
    assert started(tmp_path) == ["bad"]


@pytest.mark.slow
def test_what_ray_itself_fails_at_is_in_the_log(engine: RayEngine, tmp_path: Path) -> None:
    script = Script("gone", tmp_path)
    script.timing.write_text("{")
    with pytest.raises(TaskError, match="gone failed: Ray: .*gone.timing.json: broken"):
        run({"gone": script}, engine, outlook)


@pytest.mark.slow
def test_an_interruption_ends_the_processes(engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = tmp_path / "pid"
    script = Script(
        "long", tmp_path, code=f"open({str(alive)!r}, 'w').write(str(os.getpid()))\nimport time\ntime.sleep(600)"
    )
    wait = time.sleep

    def interrupt(seconds: float) -> None:
        wait(seconds)
        if alive.is_file() and alive.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run({"long": script}, engine, outlook)
    monkeypatch.undo()
    wait_for(lambda: not Path("/proc", alive.read_text()).exists())
    assert (read_seconds(script.timing) or 0) > 0
