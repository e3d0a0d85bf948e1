"""Names of few-shot subsets: every registered NAME also answers to NAME_5pct and NAME_5pct_seed3.

The paper draws 5, 10, 15 and 20 % of the images at random and gives no seed. Our draw is by hash instead of a random
generator, so that it is the same on every machine and with every version of every library.
"""

import difflib
import hashlib
import logging
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from cupre_d2.data.catalog import Record, is_registered_here, missing_path_error
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

COUNT_RANGES = 5
_SUBSET_NAME = re.compile(r"(?P<base>.+)_(?P<percent>-?\d+(?:\.\d+)?)pct(?:_seed(?P<seed>\d+))?")


def get_records(name: str) -> list[Record]:
    """Records of a registered data set or of a few-shot subset of one.

    Raises:
        DatasetError: the name is unknown, its percent is outside (0, 100], or its files are missing or unusable.
    """
    ensure_registered(name)
    if not is_registered_here(name):
        _check_paths(name)
    try:
        return DatasetCatalog.get(name)
    # What the readers of Detectron2 and of others raise for files they cannot use; ours raise DatasetError.
    except (OSError, ValueError, LookupError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"dataset {name!r}: cannot be read ({type(error).__name__}: {reason})") from error


def ensure_registered(name: str) -> None:
    """Registers a few-shot name with Detectron2 if it is not yet.

    NAME_5pct is 5 % of the images of NAME (decimals as 2.5pct), drawn with seed 0; NAME_5pct_seed3 with seed 3.

    Raises:
        DatasetError: the name is unknown (the closest ones are offered), or the percent is outside (0, 100].
    """
    if name in DatasetCatalog:
        return
    match = _SUBSET_NAME.fullmatch(name)
    if match is None:
        raise _unknown(name, name)
    base, percent, seed = match["base"], Fraction(match["percent"]), int(match["seed"] or 0)
    if not 0 < percent <= 100:
        raise DatasetError(f"dataset {name!r}: {match['percent']} percent; expected more than 0 and at most 100")
    if base not in DatasetCatalog and not _SUBSET_NAME.fullmatch(base):
        raise _unknown(name, base)
    ensure_registered(base)
    DatasetCatalog.register(name, partial(_load_subset, name, base, percent, seed))
    _copy_metadata(base, name)


def subset(records: Sequence[Record], percent: Fraction | float, seed: int) -> list[Record]:
    """`percent` of the records, at least one, in their original order.

    For one seed a smaller percentage is part of every larger one. Where records have a "cell_type", each type has about
    its share; where they have none, each class ("label"), or range of cell numbers ("count", see `_count_ranges`). The
    images of such a stratum are ranked by hash, the strata merged by relative rank, and a prefix is taken. The number is
    rounded as Python rounds, halves to even.
    """
    count = max(1, round(Fraction(percent) * len(records) / 100))
    chosen = set(_order(records, seed)[:count])
    return [record for index, record in enumerate(records) if index in chosen]


def _order(records: Sequence[Record], seed: int) -> list[int]:
    """Indices of the records in the order in which subsets take them."""
    strata: dict[Hashable, list[tuple[str, int]]] = defaultdict(list)
    for index, (record, stratum) in enumerate(zip(records, _strata(records), strict=True)):
        strata[stratum].append((_hash(seed, record["image_id"]), index))
    ranked = [
        ((rank + 0.5) / len(stratum), digest, index)
        for stratum in strata.values()
        for rank, (digest, index) in enumerate(sorted(stratum))
    ]
    return [index for _, _, index in sorted(ranked)]


def _strata(records: Sequence[Record]) -> Sequence[Hashable]:
    """What of each record its share of a subset goes by; records that lack it are a stratum of their own."""
    field = next((one for one in ("cell_type", "label", "count") if any(one in record for record in records)), "")
    values = [record.get(field) for record in records]
    return _count_ranges(values) if field == "count" else values


def _count_ranges(counts: Sequence[int | None]) -> list[int | None]:
    """Number of the range that each count is in: five ranges of about as many images each.

    So that 5 % of a hundred images have one of each; equal counts are in one range.
    """
    known = sorted(count for count in counts if count is not None)
    starts = [known[len(known) * part // COUNT_RANGES] for part in range(1, COUNT_RANGES)]
    return [None if count is None else bisect_right(starts, count) for count in counts]


def _hash(seed: int, image_id: Hashable) -> str:
    return hashlib.sha256(f"{seed}:{image_id}".encode()).hexdigest()


def _load_subset(name: str, base: str, percent: Fraction, seed: int) -> list[Record]:
    records = get_records(base)
    # Some readers set the classes only now.
    _copy_metadata(base, name)
    chosen = subset(records, percent, seed)
    logger.info("%s: %d of the %d images of %s", name, len(chosen), len(records), base)
    return chosen


def _copy_metadata(base: str, name: str) -> None:
    """Without json_file: it annotates the whole set, and an evaluator that read it would expect all images."""
    target = MetadataCatalog.get(name)
    for key, value in MetadataCatalog.get(base).as_dict().items():
        if key not in target.as_dict() and key != "json_file":
            setattr(target, key, value)


def _check_paths(name: str) -> None:
    """Detectron2 itself would fail on a missing file without a word about where it looks for its data sets."""
    for field in ("json_file", "image_root"):
        path = MetadataCatalog.get(name).get(field)
        if path and not Path(path).exists() and not _SUBSET_NAME.fullmatch(name):
            raise missing_path_error(name, Path(path))


def _unknown(name: str, base: str) -> DatasetError:
    suffix = name[len(base) :]
    by_lower = {known.lower(): known for known in DatasetCatalog.list()}
    close = difflib.get_close_matches(base.lower(), by_lower, n=3, cutoff=0.0)
    offered = ", ".join(by_lower[match] + suffix for match in close)
    return DatasetError(f"dataset {name!r} is unknown; the closest names are {offered}")
