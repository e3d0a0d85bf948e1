"""Which pipelines a grid of clusterings comes to."""

from pathlib import Path

import pytest

from cupre_d2.errors import ConfigError
from cupre_d2.experiments.deep_clustering.grid import Cell, Experiment, Grid, load_grid

MINI = Path("configs/mini")
GRID = Grid(("kmeans", "neural_gas"), (5, 500), (0, 3))


def test_cells() -> None:
    cells = Experiment("bbbc038", MINI, GRID).cells()
    assert len(cells) == 8 and cells[0] == Cell("kmeans", 5, 0) and cells[-1] == Cell("neural_gas", 500, 3)


def test_a_cell_reaches_the_clustering_alone() -> None:
    experiment = Experiment("bbbc038", MINI, GRID, ("unet.SOLVER.MAX_ITER", "80"))
    unet, clustering = experiment.stages(Cell("kmeans", 50, 3))
    keys = clustering.cfg.CLUSTERING
    assert (keys.ALGORITHM, keys.CLUSTERS, clustering.cfg.SEED) == ("kmeans", 50, 3)
    assert (unet.cfg.SEED, unet.cfg.SOLVER.MAX_ITER) == (0, 80)
    assert str(unet.final_checkpoint) == clustering.cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("folder", ["configs", "configs/mini"])
def test_shipped_grids(folder: str) -> None:
    grid = load_grid(Path(folder), {})
    assert {5, 500} <= set(grid.clusters) and len(grid.seeds) == 3 and len(grid.algorithms) == 3
    assert len(Experiment("bbbc038", Path(folder), grid).stages(Cell("neural_gas", 500, 0))) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithms": ["dbscan"]}, "--algorithms: .*expected names of kmeans, neural_gas, growing_neural_gas"),
        ({"clusters": [1]}, "--clusters: .*expected 2 or more"),
        ({"arms": ["coco"]}, "--arms: not of this table; expected --algorithms, --clusters, --seeds"),
    ],
)
def test_grids_that_cannot_be(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_grid(MINI, given)


def test_a_data_set_without_a_pipeline() -> None:
    with pytest.raises(ConfigError, match="neural_gas_livecell.yaml: no such pipeline"):
        Experiment("livecell", MINI, GRID).stages(Cell("kmeans", 5, 0))
