"""cupre-d2 as it is typed; the commands' own work is tested where it is done, and by tests/tools."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import cupre_d2
from cupre_d2 import commands
from cupre_d2.commands import info
from cupre_d2_cli import COMMANDS


def cupre(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "cupre_d2_cli.py", *words], capture_output=True, text=True)


def test_help_comes_at_once() -> None:
    start = time.perf_counter()
    shown = cupre("--help")
    assert time.perf_counter() - start < 1
    assert shown.returncode == 0 and all(f"  {name} " in shown.stdout for name in COMMANDS)
    assert cupre().stdout == shown.stdout


def test_a_word_that_is_no_command() -> None:
    ended = cupre("trian")
    assert (ended.returncode, ended.stderr) == (2, "cupre-d2: trian: no such command; did you mean train?\n")


def test_each_command_has_a_module() -> None:
    modules = {file.stem for file in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert modules == set(COMMANDS)


def test_info(capsys: pytest.CaptureFixture[str], small_datasets: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("info_train: {for: train, images: .}\n")
    info.main(["--datasets", str(tmp_path / "own.yaml")])
    shown = capsys.readouterr().out
    for expected in (cupre_d2.__version__, "detectron2", "torch", str(small_datasets), "bbbc038_train", "info_train"):
        assert expected in shown


@pytest.mark.parametrize(
    ("words", "called"),
    [(["--config-file", "x"], ("train", ["--config-file", "x"])), (["check", "x.yaml"], ("check", ["x.yaml"]))],
)
def test_every_script_takes_another_command_first(
    words: list[str], called: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an experiment's children can be started by the script that was started, whatever it registers."""
    seen = []

    def imported(name: str) -> object:
        command = name.rpartition(".")[2]
        return type("Module", (), {"main": staticmethod(lambda words: seen.append((command, words)))})

    monkeypatch.setattr(commands.importlib, "import_module", imported)
    monkeypatch.setattr(sys, "argv", ["projects/somebody/train_net.py", *words])
    monkeypatch.setattr(commands, "_entry", [])
    assert commands.entry() == [sys.executable, "-m", "cupre_d2"]
    with pytest.raises(SystemExit) as left:
        commands.run("train")
    assert not left.value.code and seen == [called]
    assert commands.entry() == [sys.executable, str(Path("projects/somebody/train_net.py").absolute())]
