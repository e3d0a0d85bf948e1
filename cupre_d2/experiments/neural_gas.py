"""The deep-clustering paper's table (003): segmentation before and after an encoder is retrained on clusters."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from statistics import fmean
from typing import Any

import pandas as pd
from detectron2.config import CfgNode
from matplotlib.figure import Figure

from cupre_d2.data import get_records
from cupre_d2.data.targets import Target, target
from cupre_d2.engine.pseudo_labels import ALGORITHMS
from cupre_d2.engine.results import Metrics, broken
from cupre_d2.engine.stages import Stage
from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.experiments.blocks import Block, Gallery, Heading, Links, Plot
from cupre_d2.experiments.frames import text_table, where, with_spread
from cupre_d2.experiments.latents import draw_map, latent_map
from cupre_d2.experiments.plots import error_bars
from cupre_d2.experiments.tables import (
    SEEDS,
    Experiment,
    FinishedRun,
    FinishedTable,
    Run,
    Table,
    Values,
    register_table,
    values_of,
)
from cupre_d2.report.sections import read_metrics

BASELINE = "baseline"
CLUSTERS = "clusters/"
# The paper's three columns, MAP (the DSB2018 score, mean over images): type 1, the others, and all.
PARTS = ("known", "unknown", "all")
# Of `cluster_statistics`.
STATISTICS = {
    "clusters": "clusters",
    "empty": "empty",
    "largest": "largest",
    "entropy": "entropy",
    "type_entropy_mean": "entropy of a type",
    "type_entropy_std": "its std over types",
}
K = "clusters (k)"
# Pictures of more images are too small to see.
MOST_IMAGES = 4

SCORE = (
    "MAP is the DSB2018 score in percent, the mean over images. The baseline is one network, trained on the known type "
    "alone; each other row is that network with its encoder retrained on clusters of the unknown types' images, of which "
    "no annotation is read. Mean ± standard deviation over seeds, which are those of samples, clusters and retraining; in "
    "brackets the mean less the baseline. k is the number of clusters; growing neural gas grows to at most as many."
)
STATISTIC = (
    "What the clusters look like, means over seeds: their number, those without a sample, the largest, the normalised "
    "entropy of their sizes (1: all alike), and that of each type's counts, its mean and its standard deviation over types."
)
SCORES = "Against the number of clusters, means and standard deviations over seeds; dashed the baseline."
ENTROPIES = (
    "The standard deviation over types of the normalised entropy of a type's counts over the clusters, our reading of the "
    "paper's Fig. 8, which comes without a formula."
)
LATENTS = "The baseline's latent space by t-SNE: samples where it puts them, framed in the colour of their type."
PICTURES = (
    "Before and after, with the most clusters and the first seed: of each unknown type (the four with most images) the "
    "image with the median number of cells, chosen by that alone."
)


@dataclass(frozen=True)
class EvaluatedSets:
    """What is evaluated.

    Attributes:
        known: data sets that are not clustered.
        unknown: the one that is; the paper clusters its test images too.
        images: how many each has.
    """

    known: tuple[str, ...]
    unknown: str
    images: Mapping[str, int]

    @classmethod
    def of(cls, before: CfgNode, cfg: CfgNode) -> "EvaluatedSets":
        """Of the clustering stage's config and that of the stage before it; raises ConfigError for no known ones, not one
        unknown, missing evaluators that the table needs, or two stages that differ.
        """
        unknown = tuple(name for name in cfg.DATASETS.TEST if name in cfg.DATASETS.UNLABELED)
        known = tuple(name for name in cfg.DATASETS.TEST if name not in unknown)
        if not known or len(unknown) != 1:
            raise ConfigError(
                f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: expected one data set that is clustered (DATASETS.UNLABELED) "
                "and others that are not"
            )
        if "labels" not in cfg.TEST.EVALUATORS or "cell_coco" not in cfg.TEST.EVALUATORS:
            raise ConfigError(f"TEST.EVALUATORS {tuple(cfg.TEST.EVALUATORS)}: expected labels and cell_coco")
        for name, key in (("DATASETS", "TEST"), ("TEST", "EVALUATORS")):
            if tuple(before[name][key]) != tuple(cfg[name][key]):
                raise ConfigError(
                    f"{name}.{key} {tuple(before[name][key])}: of the network before clustering; expected what is evaluated "
                    f"after it, {tuple(cfg[name][key])}"
                )
        return cls(known, unknown[0], {name: len(get_records(name)) for name in cfg.DATASETS.TEST})

    def names(self, part: str) -> tuple[str, ...]:
        return {"known": self.known, "unknown": (self.unknown,), "all": (*self.known, self.unknown)}[part]

    def score(self, metrics: Metrics, part: str) -> float:
        """MAP in percent of one of PARTS: the mean over its images."""
        names = self.names(part)
        total = sum(self.images[name] for name in names)
        return sum(metrics[name]["labels"]["DSB2018"] * self.images[name] for name in names) / total

    def __str__(self) -> str:
        known = ", ".join(f"{name} ({self.images[name]} images)" for name in self.known)
        unknown = f"{self.unknown} ({self.images[self.unknown]} images)"
        return f"Known: {known}. Unknown: {unknown}, which are the images that are clustered, as in the paper."


class NeuralGas(Table):
    """Deep clustering: one segmentation network, the baseline; then algorithms x numbers of clusters x seeds, which are
    those of the samples, their clusters and the training on them. Networks are evaluated at the end of their own stages.
    """

    title = "deep clustering"
    dataset = "bbbc038"
    lists = {
        "algorithms": Values("algorithm", (str,), ALGORITHMS.__contains__, f"names of {', '.join(ALGORITHMS)}"),
        "clusters": Values("clusters", (int,), lambda value: value >= 2, "2 or more"),
        "seeds": SEEDS,
    }

    def target(self, dataset: str) -> Target:
        """NAME_types, where images are told apart by their type of cells."""
        try:
            return target(f"{dataset}_types")
        except DatasetError:
            return target(dataset)

    def runs(self, experiment: Experiment) -> list[Run]:
        evaluated_sets(experiment)
        return [self.run(BASELINE), *super().runs(experiment)]

    def stages(self, experiment: Experiment, run: Run) -> list[Stage]:
        return pipeline(experiment)[:-1] if run.algorithm == BASELINE else pipeline(experiment, run)

    def metrics(self, experiment: Experiment, finished: FinishedRun) -> Metrics:
        """With "MAP" of each of PARTS, and statistics of the clusters as a task of the data set that is clustered."""
        sets, metrics = evaluated_sets(experiment), finished.metrics()
        if missing := [name for name in sets.names("all") if "DSB2018" not in metrics[name].get("labels", {})]:
            raise broken(finished.task.stage_folder / "stage.json", f"no DSB2018 score of {missing[0]}")
        for part in PARTS:
            metrics[part] = {"labels": {"MAP": sets.score(metrics, part)}}
        if finished.run.algorithm != BASELINE:
            metrics[sets.unknown] = {**metrics[sets.unknown], "clusters": cluster_statistics(finished)}
        return metrics

    def entry(self, experiment: Experiment, finished: FinishedRun) -> dict[str, Any]:
        metrics = self.metrics(experiment, finished)
        return {
            **values_of(finished.run),
            "MAP": {part: metrics[part]["labels"]["MAP"] for part in PARTS},
            "statistics": metrics[evaluated_sets(experiment).unknown].get("clusters", {}),
            "test": finished.metrics(),
        }

    def blocks(self, finished: FinishedTable) -> list[Block]:
        experiment, sets = finished.experiment, evaluated_sets(finished.experiment)
        scores, statistics = where(finished.frame, metric="MAP"), where(finished.frame, task="clusters")
        of_baseline = where(scores, algorithm=BASELINE)
        baseline = dict(zip(of_baseline["dataset"], of_baseline["value"], strict=True))
        tasks = finished.tasks()
        checkpoint = tasks[self.run(BASELINE)].checkpoint
        latents = latent_map(pipeline(experiment)[-1].cfg, checkpoint, sets.names("all"))
        entropy: list[Block] = []
        if len(spread := where(statistics, metric="type_entropy_std")):
            figure = error_bars(spread, "clusters", "algorithm", (K, "std over types of the normalised entropy"))
            entropy = [ENTROPIES, Plot(figure, "_entropy.png", "entropy against the number of clusters")]
        return [
            Heading("MAP before and after"),
            str(sets),
            SCORE,
            headline(scores, baseline),
            Heading("With more clusters"),
            SCORES,
            Plot(by_clusters(scores, baseline), ".png", "MAP against the number of clusters"),
            Heading("Clusters"),
            STATISTIC,
            statistics_table(statistics),
            *entropy,
            Heading("Latent space"),
            LATENTS,
            Plot(draw_map(latents), "_latents.png", "latent space", raster=True),
            Heading("The same images, before and after"),
            PICTURES,
            pictures(finished),
            Heading("Runs"),
            Links({" ".join(map(str, values_of(run).values())): task.report for run, task in tasks.items()}),
        ]


def by_clusters(scores: pd.DataFrame, baseline: Mapping[str, float]) -> Figure:
    """Fig. 6 and 7, a panel a part."""
    titles = {part: part if part == "all" else f"{part} types" for part in PARTS}
    shown = scores[scores["algorithm"] != BASELINE].replace({"dataset": titles})
    baselines = {title: baseline[part] for part, title in titles.items()}
    return error_bars(shown, "clusters", "algorithm", (K, "MAP (%)"), "dataset", baselines=baselines)


def pipeline(experiment: Experiment, run: Run | None = None) -> list[Stage]:
    """The network that segments, then the clustering of a run, by default the first.

    Raises:
        CupreError: as of `Experiment.stages`, or the clustering would not begin with the network.
    """
    run = run or Table.runs(experiment.table, experiment)[0]
    values = {"CLUSTERING.ALGORITHM": run.algorithm, "CLUSTERING.CLUSTERS": run.clusters, "SEED": run.seed}
    stages = experiment.stages(experiment.table.name, values)
    if len(stages) < 2:
        raise ConfigError(f"{experiment.table.name}.yaml: expected a network that segments, then the clustering")
    weights = stages[-1].cfg.MODEL.WEIGHTS
    if weights != str(stages[-2].final_checkpoint):
        raise ConfigError(f"{stages[-1].name}.MODEL.WEIGHTS {weights}: expected those of the stage before")
    return stages


@cache
def evaluated_sets(experiment: Experiment) -> EvaluatedSets:
    """Raises CupreError where the networks could not be compared."""
    *_, before, clustering = pipeline(experiment)
    return EvaluatedSets.of(before.cfg, clustering.cfg)


def cluster_statistics(finished: FinishedRun) -> dict[str, float]:
    """Of the last time that a run has clustered; raises ResultsError if there is none."""
    file = finished.task.stage_folder / "metrics.json"
    rounds = [row for row in read_metrics(file) if f"{CLUSTERS}entropy" in row]
    if not rounds:
        raise broken(file, "no statistics of clusters")
    return {key.removeprefix(CLUSTERS): value for key, value in rounds[-1].items() if key.startswith(CLUSTERS)}


def headline(scores: pd.DataFrame, baseline: Mapping[str, float]) -> pd.DataFrame:
    """The paper's Table I: MAP (%) before and after, mean ± standard deviation over seeds, and what was gained.

    The spread is that of the gains too, as there is one baseline.
    """

    def text(part: str, of_row: pd.DataFrame) -> str:
        values = where(of_row, dataset=part)["value"]
        gain = "" if of_row["algorithm"].iloc[0] == BASELINE else f" ({fmean(values) - baseline[part]:+.1f})"
        return with_spread(values) + gain

    columns = {part: partial(text, part) for part in PARTS}
    seeds = {"seeds": lambda of_row: str(len(of_row) // len(PARTS))}
    return text_table(scores, {"algorithm": "clusters by", "clusters": "k"}, columns | seeds)


def statistics_table(statistics: pd.DataFrame) -> pd.DataFrame:
    """What the clusters look like, means over seeds."""

    def text(metric: str, of_row: pd.DataFrame) -> str:
        mean = where(of_row, metric=metric)["value"].mean()
        if math.isnan(mean):
            return "-"
        return f"{mean:.3g}" if mean < 100 else f"{mean:.0f}"

    columns = {header: partial(text, metric) for metric, header in STATISTICS.items()}
    return text_table(statistics, {"algorithm": "clusters by", "clusters": "k"}, columns)


def pictures(finished: FinishedTable) -> Gallery:
    """Fig. 5: the baseline, and of each algorithm the most clusters with the first seed."""
    grid, dataset = finished.experiment.grid, evaluated_sets(finished.experiment).unknown
    shown = {BASELINE: finished.experiment.table.run(BASELINE)}
    for algorithm in grid["algorithms"]:
        run = finished.experiment.table.run(algorithm, max(grid["clusters"]), grid["seeds"][0])
        shown[f"{algorithm}, k {run.clusters}"] = run
    tasks = finished.tasks()
    files = {name: tasks[run].detections(dataset) for name, run in shown.items()}
    config = tasks[shown[BASELINE]].settings
    return Gallery(files, dataset, of_each_type(get_records(dataset)), config, "_pictures.jpg", "before and after")


def of_each_type(records: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Ids of up to four images: of each type, the commonest first, the one with the median number of cells.

    >>> records = [{"image_id": n, "cell_type": "ab"[n > 2], "annotations": [None] * n} for n in range(5)]
    >>> of_each_type(records)
    [1, 4]
    """

    def cell_type(record: Mapping[str, Any]) -> str:
        return record.get("cell_type", "")

    groups = [list(found) for _, found in groupby(sorted(records, key=cell_type), key=cell_type)]
    groups.sort(key=lambda found: -len(found))
    ordered = [sorted(found, key=lambda record: len(record["annotations"])) for found in groups[:MOST_IMAGES]]
    return [found[len(found) // 2]["image_id"] for found in ordered]


register_table("neural_gas", NeuralGas())
