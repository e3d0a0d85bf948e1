"""What the table of CUPre's paper shows of finished runs."""

import pandas as pd

from cupre_d2.experiments import cupre
from cupre_d2.experiments.frames import tidy, where


def frame(*runs: tuple) -> pd.DataFrame:
    columns = ("arm", "percent", "seed", "learning_rate")
    return tidy(
        (dict(zip(columns, run, strict=False)), {"t": {"bbox": {"AP": run[5]}, "segm": {"AP": run[4]}}}) for run in runs
    )


SCORES = frame(
    *(("coco", 5, 0, 0.1, 10.0, 1.0), ("coco", 5, 1, 0.1, 20.0, 1.0)),
    *(("cupre", 5, 0, 0.1, 13.0, 1.0), ("cupre", 5, 1, 0.1, 21.0, 1.0)),
)


def test_a_row_an_arm() -> None:
    table = cupre.headline(pd.concat([SCORES, frame(("cupre", 10.0, 0, 0.1, 50.0, None))]))
    assert table.columns.tolist() == ["arm", "box AP, 5 %", "mask AP, 5 %", "box AP, 10 %", "mask AP, 10 %"]
    assert table.to_numpy().tolist() == [
        ["coco", "1.0 ± 0.0", "15.0 ± 7.1", "-", "-"],
        ["cupre", "1.0 ± 0.0", "17.0 ± 5.7", "nan", "50.0"],
    ]


def test_differences_are_of_pairs() -> None:
    table = cupre.differences(where(SCORES, task="segm"))
    assert table.columns.tolist() == ["arm", "less coco"]
    assert table.to_numpy().tolist() == [["coco", "-"], ["cupre", "+2.0 ± 1.4 (n 2)"]]


def test_rates_say_what_was_chosen() -> None:
    table = cupre.rates(where(SCORES, task="segm"))
    assert table.columns.tolist() == ["arm", "annotated", "seed", "learning rate", "mask AP, validation"]
    assert table.to_numpy().tolist()[0] == ["coco", "5 %", "0", "0.1", "10.0"]


def test_images_are_chosen_by_their_number_of_cells() -> None:
    records = [{"image_id": count, "annotations": [None] * count} for count in (9, 3, 0, 100, 5, 7, 2, 4, 8, 6, 1)]
    assert cupre.choose(records) == [2, 5, 9]
    assert cupre.choose(records[:1]) == [9]
