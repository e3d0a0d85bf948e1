"""metrics.json of a run that was stopped and goes on."""

import json
from pathlib import Path

from cupre_d2.files import write_text


def drop_later(path: Path, iteration: int) -> None:
    """Takes from a file of one JSON object a line what will be measured again: `iteration` and later, and a broken line."""
    if not path.is_file():
        return
    lines = path.read_text(errors="replace").splitlines()
    kept = [line for line in lines if _iteration(line) < iteration]
    if len(kept) < len(lines):
        write_text(path, "".join(f"{line}\n" for line in kept))


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
