"""What the table runs, and what it refuses before anything trains."""

from pathlib import Path

import pytest

from cupre_d2.errors import ConfigError
from cupre_d2.experiments.deep_clustering.comparison import ClusteringComparison
from cupre_d2.experiments.deep_clustering.grid import Cell, Experiment, Grid

GRID = Grid(("kmeans",), (3, 6), (0,))


def comparison(slim: list[str], tmp_path: Path, *overrides: str) -> ClusteringComparison:
    experiment = Experiment("bbbc038", Path("configs/mini"), GRID, (*slim, *overrides))
    return ClusteringComparison(experiment, tmp_path)


def test_one_network_then_the_clusterings(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    made = comparison(slim, tmp_path)
    work = made._work
    assert [task.stage for task in work.all] == ["unet", "clustering", "clustering"]
    assert work.tasks[Cell("kmeans", 3, 0)].needs == work.tasks[Cell("kmeans", 6, 0)].needs == (work.tasks[None].key,)
    assert made.lines(2)[-1].startswith("3 of 3 to run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("clustering.CLUSTERING.CLUSTERS", "20", "clustering.CLUSTERING.CLUSTERS: set by the lists of the table"),
        ("clustering.DATASETS.TEST", "('bbbc038_unknown',)", "DATASETS.TEST .*expected one data set that is clustered"),
        ("unet.TEST.EVALUATORS", "('cell_coco',)", "TEST.EVALUATORS .*of the network before clustering"),
        ("clustering.MODEL.WEIGHTS", "a.pth", "clustering.MODEL.WEIGHTS a.pth: expected those of the stage before"),
    ],
)
def test_refused(key: str, value: str, message: str, small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        comparison(slim, tmp_path, key, value)
