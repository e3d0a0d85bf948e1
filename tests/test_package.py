"""The package as pip and a newcomer meet it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import cupre_d2


def test_without_detectron2_the_import_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    spec = importlib.util.spec_from_file_location("cupre_d2_without_detectron2", cupre_d2.__file__)
    with pytest.raises(ImportError) as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    message = str(caught.value)
    assert "\n" not in message
    github = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
    assert github in message and github in Path("README.md").read_text()
    assert "make setup" in message


def test_pip_and_python_know_one_version() -> None:
    root = Path(cupre_d2.__file__).parents[1]
    printed = subprocess.run([sys.executable, "setup.py", "--version"], cwd=root, capture_output=True, text=True, check=True)
    assert printed.stdout.split()[-1] == cupre_d2.__version__


def test_its_types_are_there_for_who_uses_it() -> None:
    assert Path(cupre_d2.__file__).with_name("py.typed").is_file()
