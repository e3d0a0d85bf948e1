"""What tools/setup_env.py must never do to a user's files, and its one line when things go wrong.."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "setup_env.py"


@pytest.fixture()
def setup_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_run(monkeypatch: pytest.MonkeyPatch, setup_env: ModuleType, code: int, stdout: str = "") -> list[list[str]]:
    """Every command answers the same; returns the list that the calls are kept in."""
    calls: list[list[str]] = []

    def answer(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, code, stdout=stdout, stderr="")

    monkeypatch.setattr(setup_env.subprocess, "run", answer)
    return calls


def test_a_folder_of_the_user_is_refused_and_left_as_it_is(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    fake_run(monkeypatch, setup_env, 1)
    monkeypatch.setattr(sys, "argv", ["setup_env.py", str(tmp_path)])
    assert setup_env.main() == 1
    line = capsys.readouterr().err
    assert "is no virtual environment" in line and line.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("The virtual environment was not created because ensurepip is not available.", "apt-get install python3-venv"),
        ("/usr/bin/python3: No module named venv", "apt-get install python3-venv"),
        ("Error: [Errno 28] No space left on device", "No space left on device"),
        ("", "python3 -m venv failed"),
    ],
)
def test_no_environment_can_be_made(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, line: str
) -> None:
    fake_run(monkeypatch, setup_env, 1, output)
    with pytest.raises(setup_env.SetupError, match=line):
        setup_env.make_venv(tmp_path / "new")
    environment = tmp_path / "old"
    environment.mkdir()
    (environment / "pyvenv.cfg").touch()
    with pytest.raises(setup_env.SetupError, match=line):
        setup_env.make_venv(environment)
    assert (environment / "pyvenv.cfg").exists()


def test_an_environment_without_pip_is_mended(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyvenv.cfg").touch()
    calls = fake_run(monkeypatch, setup_env, 0)  # asked for pip's version, it says nothing
    setup_env.make_venv(tmp_path)
    assert calls[-1][1:3] == ["-m", "venv"]


def test_an_environment_with_pip_is_used(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_run(monkeypatch, setup_env, 0, "24.0")
    assert setup_env.make_venv(tmp_path) == tmp_path / "bin" / "python"
    assert len(calls) == 1


def test_python_that_does_not_run(setup_env: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(setup_env.SetupError, match="does not run"):
        setup_env.version_of(tmp_path / "none")


def test_line_names_the_environments_python(setup_env: ModuleType) -> None:
    with pytest.raises(setup_env.SetupError, match=r"Python 3\.13 at /env/bin/python: expected 3\.10 to 3\.12"):
        setup_env.check_python((3, 13), "/env/bin/python")


def test_old_pythons_reach_the_check() -> None:
    # Python 3.6 evaluates annotations and has no builtin generics: one of them would be a trace in place of the line.
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            annotations = [argument.annotation for argument in node.args.args] + [node.returns]
            assert not any(isinstance(part, ast.Subscript) for note in annotations if note for part in ast.walk(note))


def pip_writes(text: str, code: int, monkeypatch: pytest.MonkeyPatch, setup_env: ModuleType) -> list[list[str]]:
    """pip's output goes to the log; every question to Python is answered by the empty string."""
    calls: list[list[str]] = []

    def answer(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if "pip" in command:
            calls.append(command)
            options["stdout"].write(text)  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(command, code, stdout="", stderr="")

    monkeypatch.setattr(setup_env.subprocess, "run", answer)
    return calls


def test_reason_is_that_of_the_failing_call_only(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "setup.log"
    log.write_text("WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: old\n")
    pip_writes("a 1.0 requires b, which is not installed.\n", 1, monkeypatch, setup_env)
    with pytest.raises(setup_env.SetupError, match="a 1.0 requires b, which is not installed"):
        setup_env.pip(tmp_path, log, "check")
    assert "ERROR: old" in log.read_text()


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("WARNING: … connection broken by 'X'\nERROR: No matching distribution found for torch==2\n", "no package registry"),
        (
            "ERROR: Exception:\nTraceback\nReadTimeoutError: HTTPSConnectionPool(host='x'): Read timed out.\n",
            "no package registry",
        ),
        ("WARNING: … connection broken by 'X'\nERROR: Disk quota exceeded\n", "Disk quota exceeded"),
        ("error: externally-managed-environment\n\n× hint\n", "externally-managed-environment"),
        ("/env/bin/python: No module named pip\n", "No module named pip"),
    ],
)
def test_reason(setup_env: ModuleType, output: str, line: str) -> None:
    reason = setup_env.reason(output)
    assert line in reason and "\n" not in reason and not reason.startswith(("ERROR", "error"))


def install_detectron2(
    setup_env: ModuleType, site: Path, monkeypatch: pytest.MonkeyPatch, existing: str = ""
) -> list[list[str]]:
    """The wheel put into `site` by a stand-in of `pip install --target`, which leaves what is there, as pip does."""
    calls: list[list[str]] = []

    def pip(python: Path, log: Path, *arguments: str) -> str:
        calls.append(list(arguments))
        output = ""
        for file in ("detectron2/__init__.py", "detectron2/_C.cpython-310-x86_64-linux-gnu.so", "tools/train_net.py"):
            package = site / file.split("/")[0]
            if package.exists() and not (package / ".new").exists():
                output += f"WARNING: Target directory {package} already exists. Specify --upgrade to force replacement.\n"
                continue
            package.mkdir(exist_ok=True)
            (package / ".new").touch()
            (site / file).touch()
        return output

    if existing:
        (site / existing).parent.mkdir(parents=True)
        (site / existing).write_text("of the user")
    monkeypatch.setattr(setup_env, "pip", pip)
    monkeypatch.setattr(setup_env, "output_of", lambda python, code: str(site) if "purelib" in code else "")
    setup_env.install_detectron2(Path("python"), site / "setup.log")
    return calls


def test_only_the_wheels_tools_package_goes(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_detectron2(setup_env, tmp_path, monkeypatch)
    assert not (tmp_path / "tools").exists()
    assert (tmp_path / "detectron2/__init__.py").exists() and not list(tmp_path.glob("detectron2/_C*"))


def test_a_tools_package_of_the_user_is_neither_removed_nor_replaced(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = install_detectron2(setup_env, tmp_path, monkeypatch, existing="tools/mine.py")
    assert [path.name for path in (tmp_path / "tools").iterdir()] == ["mine.py"]
    assert "--upgrade" not in calls[0]  # with --target, pip would replace the folder


def test_a_detectron2_that_does_not_import_is_named_and_left_as_it_is(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(setup_env.SetupError, match="detectron2 cannot be imported; remove it"):
        install_detectron2(setup_env, tmp_path, monkeypatch, existing="detectron2/_C.so")
    assert (tmp_path / "detectron2/_C.so").exists()
    assert not (tmp_path / "tools").exists()


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_one_pin_a_package_on_every_python_that_is_named(version: str) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = sorted({pin.name for pin in pins})
    assert sorted(pin.name for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": version})) == names
    assert all(str(pin.specifier).startswith("==") for pin in pins)
