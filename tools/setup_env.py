#!/usr/bin/env python3
"""Makes the environment that the Makefile runs in; needs nothing but Python and pip.

    python3 tools/setup_env.py .venv     # this folder, made if there is none
    python3 tools/setup_env.py           # the environment that this Python belongs to

Installs the pins of requirements.txt, Detectron2 and this package, once: a second call finds its mark and does nothing.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("requirements.txt", "setup.py", "tools/setup_env.py")
OLDEST, NEWEST = (3, 10), (3, 12)
DETECTRON2 = "sal-detectron2==0.7.2"
LOG = "setup.log"


class SetupError(Exception):
    """What went wrong, in one line."""


def check_python(version: tuple[int, ...]) -> None:
    """Raises SetupError for a Python that the pins have no wheels for."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        raise SetupError(f"Python {version[0]}.{version[1]} at {sys.executable}: expected {span}")


def make_venv(folder: Path) -> Path:
    """The environment's Python; the environment is made if there is none."""
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        print(f"set-up: making {folder}")
        result = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
        if result.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise SetupError("python3 cannot make a virtual environment; on Debian: apt-get install python3-venv")
    return python


def output_of(python: Path, code: str) -> str:
    """What a line of Python prints in the environment; "" if it fails."""
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False, cwd="/")
    return result.stdout.strip() if result.returncode == 0 else ""


def fingerprint() -> str:
    """Changes whenever something that decides what is installed does, or the checkout is at another place."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def pip(python: Path, log: Path, *arguments: str) -> None:
    """Runs pip, its output to the log; raises SetupError with the likeliest reason in one line."""
    with log.open("a") as file:
        result = subprocess.run([str(python), "-m", "pip", *arguments], stdout=file, stderr=file, check=False)
    if result.returncode:
        raise SetupError(f"{reason(log.read_text())} (pip {arguments[0]}, details in {log})")


def reason(output: str) -> str:
    """The one line of pip's output that a person needs."""
    lines = output.splitlines()
    unreachable = ("Failed to establish a new connection", "NewConnectionError", "Temporary failure in name resolution")
    if any(sign in line for line in lines for sign in (*unreachable, "ConnectTimeoutError", "ProxyError")):
        return "no package registry can be reached; check the network, or pip's index-url and proxy"
    errors = [line for line in lines if line.startswith("ERROR: ")]
    missing = [line for line in errors if "No matching distribution" in line]
    return (missing or errors or ["pip failed"])[-1].removeprefix("ERROR: ")


def install_detectron2(python: Path, log: Path) -> None:
    """Keeps a Detectron2 that imports; else installs PyPI's copy without its compiled part, which fits one Python only."""
    found = output_of(python, "import detectron2; print(detectron2.__version__)")
    if found:
        print(f"set-up: Detectron2 {found} is there, kept")
        return
    print(f"set-up: installing {DETECTRON2}")
    purelib = Path(output_of(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    tools_before = (purelib / "tools").exists()
    target = ("--target", str(purelib), "--python-version", "3.10", "--only-binary=:all:", "--no-deps", "--upgrade")
    pip(python, log, "install", *target, DETECTRON2)
    for compiled in (purelib / "detectron2").glob("_C*.so"):
        compiled.unlink()
    if not tools_before:
        # The wheel brings Detectron2's own scripts as a top-level package of this very common name.
        shutil.rmtree(purelib / "tools", ignore_errors=True)


def set_up(python: Path) -> None:
    """Brings the environment to what this checkout needs, or finds that it is there.

    Raises:
        SetupError: one line for people.
    """
    check_python(tuple(int(part) for part in output_of(python, "import sys; print(*sys.version_info[:2])").split()))
    prefix = Path(output_of(python, "import sys; print(sys.prefix)"))
    mark, log = prefix / "cupre_d2.installed", prefix / LOG
    if mark.exists() and mark.read_text() == fingerprint():
        print("set-up: nothing to do")
        return
    started = time.monotonic()
    log.write_text("")
    print("set-up: installing the pinned packages, about 3 GB to download, two minutes or more")
    pip(python, log, "install", "--disable-pip-version-check", "-r", str(ROOT / "requirements.txt"))
    install_detectron2(python, log)
    print("set-up: installing cupre_d2, editable")
    pip(python, log, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    pip(python, log, "check")
    mark.write_text(fingerprint())
    print(f"set-up: done in {time.monotonic() - started:.0f} s")


def main() -> int:
    try:
        check_python(sys.version_info[:2])
        set_up(make_venv(Path(sys.argv[1])) if len(sys.argv) > 1 else Path(sys.executable))
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
