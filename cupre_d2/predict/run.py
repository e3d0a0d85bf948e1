"""The job: the pages of all inputs through a segmenter to their outputs, going on where it was stopped."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from cupre_d2.engine import preemption
from cupre_d2.engine.results import broken, write_json
from cupre_d2.errors import ConfigError, CupreError
from cupre_d2.files import hold, release
from cupre_d2.predict.sources import Found, Key, Page, find_pages

FILE = "predictions.json"
# Of predictions.json.
FORMAT_VERSION = 1
# Writing predictions.json takes at most this share of the time: it is written whole, and of a plate it is large.
_SHARE = 0.05


class Segmenter(Protocol):
    @property
    def fingerprint(self) -> str:
        """Of the model; the same only for the same weights and thresholds."""

    def __call__(self, page: Page, /) -> Any:
        """The page's `Segmentation`."""


class Outputs(Protocol):
    @property
    def formats(self) -> Sequence[str]:
        """Their names."""

    def write(self, page: Page, segmentation: Any) -> "Written":
        """Writes a page's outputs, each whole or not at all."""

    def finish(self, pages: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> None:
        """Writes what is of all pages together.

        Args:
            pages: a page's entry in predictions.json each: "name", "file", "page", "outputs", "summary" and others.
            failures: a line each.
        """


@dataclass(frozen=True)
class Written:
    """
    Attributes:
        files: relative to the output folder.
        summary: what `Outputs.finish` is to know of the page, in JSON's types; "cells" is their number.
    """

    files: Sequence[str]
    summary: Mapping[str, Any]


@dataclass
class Outcome:
    """What a job came to.

    Attributes:
        done: pages segmented now.
        kept: pages that had been done before.
        failures: a line each.
        cells: in all of these pages.
        empty: pages, done or kept, without a cell.
    """

    done: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)
    cells: int = 0
    empty: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 2 nothing could be segmented."""
        if not self.failures:
            return 0
        return 1 if self.done + self.kept else 2


class Ledger:
    """predictions.json: which pages are done, by which model, with which settings.

    Args:
        folder: made if it is not there; of another job it is refused, and so is one that holds anything else, where outputs
            could replace what somebody made by hand.
        model: the segmenter's fingerprint.
        settings: that change what comes out, in JSON's types.

    Raises:
        ConfigError: the folder cannot be used.
        ResultsError: predictions.json is broken.
    """

    def __init__(self, folder: Path, model: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._content: dict[str, Any] = {"format": FORMAT_VERSION, "model": model, "settings": _plain(settings), "pages": []}
        before = self._read()
        if before and before["pages"]:
            self._check(before)
            self._content["pages"] = before["pages"]
        self._pages: dict[Key, dict[str, Any]] = {(one["file"], one["page"] or 0): one for one in self._content["pages"]}
        self._due = 0.0
        # From now on the folder is known as this job's.
        self.write()
        for file in folder.rglob("*.partial"):
            file.unlink(missing_ok=True)

    @property
    def names(self) -> dict[Key, str]:
        return {key: one["name"] for key, one in self._pages.items()}

    @property
    def pages(self) -> list[dict[str, Any]]:
        """By name."""
        return sorted(self._pages.values(), key=lambda one: one["name"])

    def entry(self, page: Page) -> dict[str, Any]:
        return self._pages[page.key]

    def is_done(self, page: Page, formats: Sequence[str]) -> bool:
        """Whether the outputs are there, in all formats, and of the input as it is now."""
        entry = self._pages.get(page.key)
        if not entry or not set(formats) <= set(entry["formats"]):
            return False
        same = entry["state"] == list(page.state) and entry["reading"] == _plain(page.reading)
        return same and all((self.folder / file).is_file() for file in entry["outputs"])

    def add(self, page: Page, formats: Sequence[str], written: Written) -> None:
        """Notes that a page is done; what is there of it in other formats, of the same input, stays."""
        before = self._pages[page.key] if self.is_done(page, ()) else {"formats": [], "outputs": []}
        self._pages[page.key] = {
            "name": page.name,
            "file": str(page.file),
            "page": page.page,
            "height": page.shape[0],
            "width": page.shape[1],
            "state": list(page.state),
            "reading": _plain(page.reading),
            "formats": sorted({*before["formats"], *formats}),
            "outputs": sorted({*before["outputs"], *written.files}),
            "summary": _plain(written.summary),
        }
        if time.monotonic() >= self._due:
            self.write()

    def drop(self, page: Page) -> None:
        """What was done of it before is of another input, or of other settings."""
        self._pages.pop(page.key, None)

    def write(self) -> None:
        start = time.monotonic()
        write_json(self.folder / FILE, {**self._content, "pages": self.pages})
        end = time.monotonic()
        self._due = end + (end - start) / _SHARE

    def _read(self) -> dict[str, Any] | None:
        file = self.folder / FILE
        if not file.is_file():
            strange = sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith("."))
            if strange and strange != [f"{FILE}.partial"]:
                raise ConfigError(
                    f"{self.folder}: not empty ({strange[0]}), and no predictions; expected a new or an empty folder"
                )
            return None
        try:
            content = json.loads(file.read_text())
            if content["format"] != FORMAT_VERSION:
                raise ConfigError(f"{file}: format {content['format']}; expected {FORMAT_VERSION}, or another folder")
            for page in content["pages"]:
                page["file"], page["page"], page["name"], page["state"], page["reading"], page["formats"], page["outputs"]
            return content
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise broken(file, repr(error)) from error

    def _check(self, before: Mapping[str, Any]) -> None:
        """
        Raises:
            ConfigError: what is there was made by another model or with other settings.
        """
        remedy = "expected the same, or another --output"
        if before["model"] != self._content["model"]:
            theirs, ours = (str(one)[:12] for one in (before["model"], self._content["model"]))
            raise ConfigError(f"{self.folder}: holds predictions of another model ({theirs}, now {ours}); {remedy}")
        theirs, ours = before["settings"], self._content["settings"]
        for name in sorted({*theirs, *ours}):
            if theirs.get(name) != ours.get(name):
                raise ConfigError(
                    f"{self.folder}: holds predictions with {name} {theirs.get(name)}, now {ours.get(name)}; {remedy}"
                )


def predict(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    segmenter: Segmenter,
    outputs: Outputs,
    settings: Mapping[str, Any],
    *,
    datasets: str | os.PathLike[str] | None = None,
    channels: Sequence[int] | None = None,
    trained_channels: Sequence[int] | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Segments all pages of the inputs that the output folder does not have yet, and writes their outputs.

    A page that fails is told and left out; the next call tries it again. On SIGTERM and SIGUSR1 the process ends after the
    page, with the code `preemption.RESUME_ME`.

    Args:
        inputs, datasets, channels, trained_channels: see `find_pages`.
        output: folder; other processes are kept out of it.
        settings: that change what comes out, in JSON's types; the folder holds predictions with the same ones only.
        say: is told of each failure and of what is left out, a line each; by default to stderr.

    Raises:
        ConfigError: the output folder or the settings cannot be used.
        DatasetError, ResultsError: see `find_pages` and `Ledger`.
        OSError: an output cannot be written; the page is then not done, what was done before is.
    """
    say = say or (lambda line: tqdm.write(line, file=sys.stderr))
    folder = Path(output).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to ({error.strerror})") from error
    hold(folder, "predicting there")
    try:
        ledger = Ledger(folder, segmenter.fingerprint, settings)
        found = find_pages(inputs, datasets, channels, trained_channels, folder, ledger.names)
        for line in (*found.remarks, *found.failures):
            say(line)
        with preemption.deferring("leaving after this image; the same command goes on from there"):
            return _run(found, ledger, segmenter, outputs, say)
    finally:
        release(folder)


def _run(found: Found, ledger: Ledger, segmenter: Segmenter, outputs: Outputs, say: Callable[[str], None]) -> Outcome:
    outcome, told = Outcome(failures=list(found.failures)), set[str]()
    due = [page for page in found.pages if not ledger.is_done(page, outputs.formats)]
    outcome.kept = len(found.pages) - len(due)
    # By pixels, as images may differ much in size.
    bar = tqdm(total=sum(page.pixels for page in due), **_bar())
    try:
        for number, page in enumerate(due, 1):
            bar.set_description_str(f"image {number} of {len(due)}")
            if failure := _segment(page, ledger, segmenter, outputs):
                # A stack whose pages all fail for one reason is one line, not a thousand.
                reason = failure.replace(str(page), str(page.file))
                if reason not in told:
                    say(failure)
                told.add(reason)
                outcome.failures.append(failure)
            else:
                outcome.done += 1
            bar.update(page.pixels)
            if preemption.requested("cpu"):
                break
    except BaseException:
        # On a full disk this fails too, which is not what is to be told.
        with suppress(OSError):
            ledger.write()
        raise
    finally:
        bar.close()
    ledger.write()
    if not preemption.requested("cpu"):
        whole = [entry for entry in ledger.pages if set(outputs.formats) <= set(entry["formats"])]
        if others := len(ledger.pages) - len(whole):
            say(f"{ledger.folder}: left {others} images of before out, as they lack some formats; name them again")
        outputs.finish(whole, outcome.failures)
    known = ledger.names
    present = [ledger.entry(page) for page in found.pages if page.key in known]
    outcome.cells = sum(entry["summary"]["cells"] for entry in present)
    outcome.empty = [entry["name"] for entry in present if not entry["summary"]["cells"]]
    return outcome


def _segment(page: Page, ledger: Ledger, segmenter: Segmenter, outputs: Outputs) -> str:
    """One line on why it failed; "" where it did not."""
    try:
        written = outputs.write(page, segmenter(page))
    except (ConfigError, OSError):
        # Settings, or a disk that cannot be written: no other page would do better. (Inputs raise DatasetError.)
        raise
    except Exception as error:
        ledger.drop(page)
        reason = " ".join(str(error).split())
        reason = reason if isinstance(error, CupreError) else f"{type(error).__name__}: {reason}"
        return reason if page.file.name in reason else f"{page}: {reason}"
    finally:
        page.close()
    ledger.add(page, outputs.formats, written)
    return ""


def _bar() -> dict[str, Any]:
    """Of progress: in a log a line a minute."""
    form = "{desc} {percentage:3.0f}% {bar:20} {elapsed} gone, {remaining} left"
    return {"bar_format": form, "desc": "images", "mininterval": 0.2 if sys.stderr.isatty() else 60.0}


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))
