import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture()
def setup_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", "tools/setup_env.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / "checkout"
    (root / "tools").mkdir(parents=True)
    for name in module.INPUTS:
        (root / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", root)
    return module


class FakeEnvironment:
    """Answers `python -c …` and `python -m pip …` as an environment would, and keeps the calls of pip."""

    def __init__(self, prefix: Path, detectron2: str = "", pip_output: str = "", pip_code: int = 0) -> None:
        self.prefix = prefix
        self.purelib = prefix / "site-packages"
        self.purelib.mkdir(parents=True)
        self.detectron2 = detectron2
        self.pip_output, self.pip_code = pip_output, pip_code
        self.pip_calls: list[list[str]] = []

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if "pip" in command:
            return self._pip(command[3:], options["stdout"])
        answers = {"version_info": "3 11", "sys.prefix": self.prefix, "detectron2": self.detectron2, "purelib": self.purelib}
        answer = next(str(answers[key]) for key in answers if key in command[2])
        return subprocess.CompletedProcess(command, 0 if answer else 1, stdout=answer)

    def _pip(self, arguments: list[str], log: object) -> subprocess.CompletedProcess[str]:
        self.pip_calls.append(arguments)
        log.write(self.pip_output)  # type: ignore[attr-defined]
        if "--target" in arguments:
            for file in ("detectron2/_C.cpython-310.so", "detectron2/__init__.py", "tools/__init__.py"):
                (self.purelib / file).parent.mkdir(exist_ok=True)
                (self.purelib / file).touch()
        return subprocess.CompletedProcess(arguments, self.pip_code)


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (2, 7)])
def test_wrong_python(setup_env: ModuleType, version: tuple[int, int]) -> None:
    with pytest.raises(setup_env.SetupError, match=rf"Python {version[0]}\.{version[1]} at .*: expected 3.10 to 3.12"):
        setup_env.check_python(version)


def test_installs_once(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # noqa: ANN001
    environment = FakeEnvironment(tmp_path / "venv")
    monkeypatch.setattr(setup_env.subprocess, "run", environment.run)
    setup_env.set_up(Path("python"))
    assert [call[0] for call in environment.pip_calls] == ["install", "install", "install", "check"]
    assert not list(environment.purelib.glob("detectron2/_C*"))
    assert not (environment.purelib / "tools").exists()
    assert (environment.purelib / "detectron2/__init__.py").exists()

    setup_env.set_up(Path("python"))
    assert len(environment.pip_calls) == 4
    assert "nothing to do" in capsys.readouterr().out

    (setup_env.ROOT / "requirements.txt").write_text("changed")
    setup_env.set_up(Path("python"))
    assert len(environment.pip_calls) > 4


def test_keeps_what_is_there(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = FakeEnvironment(tmp_path / "venv", detectron2="0.6")
    (environment.purelib / "tools").mkdir()
    monkeypatch.setattr(setup_env.subprocess, "run", environment.run)
    setup_env.set_up(Path("python"))
    assert not any("--target" in call for call in environment.pip_calls)
    assert (environment.purelib / "tools").exists()


def test_a_tools_package_of_the_user_stays(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = FakeEnvironment(tmp_path / "venv")
    (environment.purelib / "tools").mkdir()
    monkeypatch.setattr(setup_env.subprocess, "run", environment.run)
    setup_env.set_up(Path("python"))
    assert (environment.purelib / "tools").exists()


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "WARNING: Retrying … NewConnectionError …\nERROR: No matching distribution found for torch==2\n",
            "no package registry",
        ),
        ("ERROR: Could not find a version\nERROR: No matching distribution found for torch==2\n", "No matching .* torch==2"),
        ("ERROR: disk quota exceeded\n", "disk quota exceeded"),
        ("", "pip failed"),
    ],
)
def test_failure_is_one_line_and_not_marked_as_done(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, line: str
) -> None:
    environment = FakeEnvironment(tmp_path / "venv", pip_output=output, pip_code=1)
    monkeypatch.setattr(setup_env.subprocess, "run", environment.run)
    with pytest.raises(setup_env.SetupError, match=rf"{line}.*setup\.log") as caught:
        setup_env.set_up(Path("python"))
    assert "\n" not in str(caught.value)
    assert not (environment.prefix / "cupre_d2.installed").exists()
