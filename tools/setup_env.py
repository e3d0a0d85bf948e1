#!/usr/bin/env python3
"""Makes the environment that the Makefile runs in; needs nothing but Python and pip.

    python3 tools/setup_env.py .venv     # this folder, made if there is none
    python3 tools/setup_env.py           # the environment that this Python belongs to

Installs the pins of requirements.txt, Detectron2 and this package, once: a second call finds its mark and does nothing.
"""

import argparse
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
UNREACHABLE = (
    "connection broken by",
    "ConnectionPool(",
    "Failed to establish a new connection",
    "NewConnectionError",
    "NameResolutionError",
    "Temporary failure in name resolution",
    "ConnectTimeoutError",
    "ProxyError",
)


class SetupError(Exception):
    """What went wrong, in one line."""


def say(text: str) -> None:
    # Flushed: without a terminal the lines would all come at the end.
    print(f"set-up: {text}", flush=True)


# The annotations with brackets are quoted so that Python 3.6 to 3.8 get as far as this check's line.
def check_python(version: "tuple[int, ...]", where: str = sys.executable) -> None:
    """Raises SetupError for a Python that the pins have no wheels for."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        raise SetupError(f"Python {version[0]}.{version[1]} at {where}: expected {span}")


def version_of(python: Path) -> "tuple[int, ...]":
    """Major and minor version of the environment's Python; raises SetupError where it does not run."""
    version = output_of(python, "import sys; print(*sys.version_info[:2])")
    if not version:
        raise SetupError(f"{python} does not run; remove that environment and start again")
    return tuple(int(part) for part in version.split())


def make_venv(folder: Path) -> Path:
    """The environment's Python; the environment is made if there is none, and mended if it has no pip.

    Raises:
        SetupError: the folder holds something else (it is left as it is), or Python cannot make environments.
    """
    python = folder.absolute() / "bin" / "python"
    if output_of(python, "import pip; print(pip.__version__)"):
        return python
    is_new = not folder.exists()
    if not is_new and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SetupError(f"{folder} is there and is no virtual environment; name another folder with VENV=")
    say(f"making {folder}")
    command = [sys.executable, "-m", "venv", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        output = (result.stdout + result.stderr).strip()
        if "ensurepip" in output or "No module named venv" in output:
            raise SetupError("python3 cannot make a virtual environment; on Debian: apt-get install python3-venv")
        raise SetupError(f"cannot make {folder}: {(output or 'python3 -m venv failed').splitlines()[-1]}")
    return python


def output_of(python: Path, code: str) -> str:
    """What a line of Python prints in the environment; "" if it fails."""
    try:
        result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False, cwd="/")
    except OSError:  # no such file, or none that can be run
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def fingerprint() -> str:
    """Changes whenever something that decides what is installed does, or the checkout is at another place."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def pip(python: Path, log: Path, *arguments: str) -> str:
    """Runs pip and returns its output, which the log keeps; raises SetupError with the likeliest reason in one line."""
    start = log.stat().st_size
    with log.open("a") as file:
        result = subprocess.run([str(python), "-m", "pip", *arguments], stdout=file, stderr=file, check=False)
    output = log.read_bytes()[start:].decode(errors="replace")
    if result.returncode:
        raise SetupError(f"{reason(output)} (pip {arguments[0]}, details in {log})")
    return output


def reason(output: str) -> str:
    """The one line of pip's output that a person needs."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error: ")]
    missing = [line for line in errors if "No matching distribution" in line]
    line = (missing or errors or lines or ["pip failed"])[-1]
    if line == "ERROR: Exception:":  # a trace of pip's own follows
        line = lines[-1]
    # A connection that broke and was mended is not the reason of another error.
    if any(sign in place for place in (lines if missing else [line]) for sign in UNREACHABLE):
        return "no package registry can be reached; check the network, or pip's index-url and proxy"
    return line.partition(": ")[2] if line in errors else line


def install_detectron2(python: Path, log: Path) -> None:
    """Keeps a Detectron2 that imports; else installs PyPI's copy without its compiled part, which fits one Python only."""
    found = output_of(python, "import detectron2; print(detectron2.__version__)")
    if found:
        say(f"Detectron2 {found} is there, kept")
        return
    say(f"installing {DETECTRON2}")
    purelib = Path(output_of(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    tools_before = (purelib / "tools").exists()
    # No --upgrade: with --target it would replace a `tools` package of the user by the wheel's.
    target = ("--target", str(purelib), "--python-version", "3.10", "--only-binary=:all:", "--no-deps")
    output = pip(python, log, "install", *target, DETECTRON2)
    if not tools_before:
        # The wheel brings Detectron2's own scripts as a top-level package of this very common name.
        shutil.rmtree(purelib / "tools", ignore_errors=True)
    if f"{purelib / 'detectron2'} already exists" in output:  # pip's warning that it left that folder as it was
        raise SetupError(f"{purelib / 'detectron2'} cannot be imported; remove it and start again")
    for compiled in (purelib / "detectron2").glob("_C*.so"):
        compiled.unlink()


def set_up(python: Path) -> None:
    """Brings the environment to what this checkout needs, or finds that it is there.

    Raises:
        SetupError: one line for people.
    """
    check_python(version_of(python), str(python))
    prefix = Path(output_of(python, "import sys; print(sys.prefix)"))
    mark, log = prefix / "cupre_d2.installed", prefix / LOG
    if mark.exists() and mark.read_text() == fingerprint():
        say("nothing to do")
        return
    started = time.monotonic()
    log.write_text("")
    say("installing the pinned packages, about 3 GB to download, two minutes or more")
    pip(python, log, "install", "--disable-pip-version-check", "-r", str(ROOT / "requirements.txt"))
    install_detectron2(python, log)
    say("installing cupre_d2, editable")
    pip(python, log, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    pip(python, log, "check")
    mark.write_text(fingerprint())
    say(f"done in {time.monotonic() - started:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Installs what this checkout needs, once.")
    parser.add_argument("venv", nargs="?", type=Path, help="the environment's folder; without it, this Python's environment")
    folder = parser.parse_args().venv
    try:
        check_python(sys.version_info[:2])
        set_up(make_venv(folder) if folder else Path(sys.executable))
    except (SetupError, OSError) as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
