"""What a check can find, how bad it is, and how it is printed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Error: training or evaluation would fail or be wrong. Warning: a defect, most likely. Note: worth knowing.
KINDS: dict[str, Severity] = {
    "unusable file": "error",
    "unusable entry": "error",
    "file outside the folder": "error",
    "missing image": "error",
    "unreadable image": "error",
    "size mismatch": "error",
    "leak": "error",
    "duplicate image id": "error",
    "duplicate annotation id": "error",
    "duplicate category id": "error",
    "unknown image id": "error",
    "unknown category id": "error",
    "category ids off by one": "error",
    "malformed mask": "error",
    "malformed box": "error",
    "malformed area": "error",
    "repeated file": "warning",
    "repeated content": "warning",
    "missing annotation id": "warning",
    "duplicate category name": "warning",
    "empty mask": "warning",
    "degenerate polygon": "warning",
    "polygon outside the image": "warning",
    "box outside the image": "warning",
    "box without area": "warning",
    "box contradicts mask": "warning",
    "double contour": "warning",
    "overlap": "warning",
    "few cells": "warning",
    "no cell": "note",
    "unusual category ids": "note",
    "category without instances": "note",
    "shared images": "note",
}


@dataclass(frozen=True)
class Finding:
    """One defect.

    Attributes:
        kind: one of KINDS.
        file: the JSON, image or folder it was found in.
        record: which image, annotation or category in it.
        message: what was found and, where that is not plain, what was expected.
        split: name of the split.
        image, annotation: positions in the split from 0, for `fix`; None where the defect is not one of theirs.
    """

    kind: str
    severity: Severity
    file: Path
    record: str
    message: str
    split: str = ""
    image: int | None = None
    annotation: int | None = None

    def __str__(self) -> str:
        line = " ".join(f"{self.severity}: {self.kind}: {self.file}: {self.record}: {self.message}".splitlines())
        # File names need not be text.
        return line.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass
class Collector:
    """Gathers the findings of one split."""

    split: str
    file: Path
    findings: list[Finding] = field(default_factory=list)

    def add(
        self,
        kind: str,
        record: str,
        message: str,
        image: int | None = None,
        annotation: int | None = None,
        file: Path | None = None,
    ) -> None:
        self.findings.append(Finding(kind, KINDS[kind], file or self.file, record, message, self.split, image, annotation))


def exit_code(findings: Sequence[Finding]) -> int:
    """0 where nothing or only notes were found, 1 for warnings, 2 for errors."""
    severities = {finding.severity for finding in findings}
    return 2 if "error" in severities else int("warning" in severities)


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """One line a finding, the worst first, and then one line a kind with its count."""
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    yield from map(str, ordered)
    for kind, count in Counter(finding.kind for finding in ordered).items():
        yield f"{count:>8,} {KINDS[kind]}: {kind}"
    if not findings:
        yield "nothing found"


def results(by_set: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    """The findings of several data sets in numbers, for a JSON: exit code, and count a kind, of each set."""
    return {
        name: {"exit_code": exit_code(findings), "findings": dict(Counter(finding.kind for finding in findings))}
        for name, findings in by_set.items()
    }


def results_table(by_set: Mapping[str, Sequence[Finding]]) -> str:
    """The findings of several data sets as a Markdown table, one row a set."""
    rows = [
        (
            name,
            exit_code(findings),
            *(sum(finding.severity == severity for finding in findings) for severity in SEVERITIES),
            ", ".join(f"{count:,} {kind}" for kind, count in Counter(finding.kind for finding in findings).most_common()),
        )
        for name, findings in by_set.items()
    ]
    return tabulate(rows, ("data set", "exit code", "errors", "warnings", "notes", "kinds"), tablefmt="github")
