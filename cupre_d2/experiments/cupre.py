"""Table II of CUPre's paper: arms x annotated fractions x seeds, with Fig. 3, 4, 6 and 8-10."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cupre_d2.data import get_records
from cupre_d2.engine.stages import Stage
from cupre_d2.errors import ConfigError
from cupre_d2.experiments.blocks import Block, Gallery, Heading, Links, Plot
from cupre_d2.experiments.frames import paired, text_table, where, with_spread
from cupre_d2.experiments.plots import bars, curves
from cupre_d2.experiments.tables import (
    ARMS,
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

TASKS = {"bbox": "box AP", "segm": "mask AP"}
# The arms that the others are compared with: what most labs do, and the same with as many COCO iterations as cupre.
CONTROLS = ("coco", "coco_long")
# Fig. 6; it is drawn if one of the three that stand for nothing else is there.
ABLATION = ("coco", "cocopp", "cupremm", "cupre", "cuprepp")
ABLATED = {"cocopp", "cupremm", "cuprepp"}
# Of the number of cells: a sparse, a middling and a crowded image.
QUANTILES = (0.25, 0.5, 0.9)

SCORE = "AP in percent on the test images, which were read once; mean ± standard deviation over seeds."
PAIRED = (
    "Mask AP less that of a control, paired by fraction and seed (coco_long: COCO pre-training with as many COCO iterations "
    "in all as cupre gets, the control that the paper lacks)."
)
FRACTIONS = "By the number of annotated images: the mean over seeds (thick) and each seed (thin)."
EPOCHS = (
    "While fine-tuning: mask AP on the validation images, the mean over seeds (thick) and each seed (thin). A run that was "
    "evaluated at its end alone is a dot."
)
ABLATIONS = (
    "What the parts of CUPre are worth, with the fewest annotations: cocopp has MoCo's backbone and COCO's neck and head, "
    "cupremm has no L2-SP, cuprepp has it in fine-tuning too. Mean, standard deviation over seeds, and each seed."
)
RATES = "Fine-tuning's learning rate was chosen an arm and fraction on the validation images, with the first seed."
PICTURES = (
    "The same test images as each arm segments them, with the fewest annotations and the first seed; they were chosen by "
    "their number of cells alone."
)


class Cupre(Table):
    """Table II of CUPre: arms (names, or paths of YAML files) x annotated percents x seeds, which are of the annotated
    subset and of fine-tuning; pre-training is done once. The learning rate of fine-tuning is chosen an arm and percent on
    the validation images, with the first seed; the test images are read once, by the chosen runs.
    """

    title = "arms of CUPre"
    dataset = "bbbc038"
    lists = {
        "arms": ARMS,
        "percents": Values("percent", (int, float), lambda value: 0 < value <= 100, "more than 0, up to 100"),
        "seeds": SEEDS,
        "learning_rates": Values("learning_rate", (int, float), lambda value: value > 0, "more than 0"),
    }
    chosen = "learning_rates"

    def stages(self, experiment: Experiment, run: Run) -> list[Stage]:
        validation = (experiment.one_of("val"),)
        values = {"DATASETS.TEST": validation, "SEED": run.seed, "SOLVER.BASE_LR": run.learning_rate}
        stages = experiment.stages(run.arm, values, f"{run.percent:g}pct_seed{run.seed}")
        evaluators = stages[-1].cfg.TEST.EVALUATORS
        if "cell_coco" not in evaluators:
            raise ConfigError(f"{stages[-1].name}.TEST.EVALUATORS {tuple(evaluators)}: expected cell_coco among them")
        return stages

    def tests(self, experiment: Experiment) -> tuple[str, ...]:
        return (experiment.one_of("test"),)

    def entry(self, experiment: Experiment, finished: FinishedRun) -> dict[str, Any]:
        validation, metrics = experiment.one_of("val"), finished.metrics()
        curve = finished.task.curve(validation, "segm", "AP")
        return {
            **values_of(finished.run),
            "validation": metrics[validation],
            "test": metrics[experiment.one_of("test")],
            "validation_curve": [{"iterations": done, "epochs": epochs, "ap": ap} for done, epochs, ap in curve],
        }

    def blocks(self, finished: FinishedTable) -> list[Block]:
        experiment = finished.experiment
        scores = where(finished.frame, metric="AP")
        test, validation = (where(scores, dataset=experiment.one_of(role)) for role in ("test", "val"))
        masks = where(test, task="segm")
        fewest = where(masks, percent=min(experiment.grid["percents"]))
        reports = {f"{run.arm}, {run.percent:g} %, seed {run.seed}": task.report for run, task in finished.tasks().items()}
        ablation: list[Block] = []
        if ABLATED & {*fewest["arm"]}:
            figure = bars(fewest, "arm", "mask AP, test images (%)", ABLATION)
            ablation = [Heading("Ablation"), ABLATIONS, Plot(figure, "_ablation.png", "ablation")]
        return [
            Heading("Average precision"),
            SCORE,
            headline(test),
            PAIRED,
            differences(masks),
            Heading("With more annotated images, and with more epochs"),
            FRACTIONS,
            Plot(by_fraction(masks), ".png", "mask AP against the annotated share"),
            EPOCHS,
            Plot(by_epoch(learning(finished)), "_epochs.png", "mask AP against epochs"),
            *ablation,
            Heading("Runs"),
            RATES,
            rates(where(validation, task="segm")),
            Links(reports),
            Heading("The same images, arm by arm"),
            PICTURES,
            pictures(finished),
        ]


def by_fraction(masks: pd.DataFrame) -> Figure:
    """Fig. 4."""
    return curves(masks, "percent", "arm", ("annotated training images (%)", "mask AP, test images (%)"))


def by_epoch(learned: pd.DataFrame) -> Figure:
    """Fig. 3, a panel a fraction."""
    learned = learned.sort_values("percent", kind="stable")
    labels = ("epochs of fine-tuning", "mask AP, validation images (%)")
    # By iterations, as epochs are quotients.
    return curves(learned, "epochs", "arm", labels, panel="percent", title="{:g} % annotated", at="iterations")


def learning(finished: FinishedTable) -> pd.DataFrame:
    """What Fig. 3 shows: "value" is mask AP on the validation images, a row an evaluation while a run was fine-tuned."""
    found = zip(finished.runs, finished.entries, strict=True)
    rows = [{**one.run._asdict(), **point} for one, entry in found for point in entry["validation_curve"]]
    columns = [*finished.experiment.table.columns, "iterations", "epochs", "ap"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"ap": "value"})


def headline(test: pd.DataFrame) -> pd.DataFrame:
    """Table II: a row an arm, a column a fraction and task; mean ± standard deviation over seeds."""

    def text(percent: float, task: str, of_arm: pd.DataFrame) -> str:
        return with_spread(where(of_arm, percent=percent, task=task)["value"])

    columns = {
        f"{name}, {percent:g} %": partial(text, percent, task)
        for percent in sorted(test["percent"].unique())
        for task, name in TASKS.items()
    }
    return text_table(test, {"arm": "arm"}, columns)


def differences(masks: pd.DataFrame) -> pd.DataFrame:
    """Of every arm less each control, paired by fraction and seed: mean ± standard deviation, n."""

    def text(control: str, of_arm: pd.DataFrame) -> str:
        arm = of_arm["arm"].iloc[0]
        values = paired(masks, "arm", arm, control, ["percent", "seed"]) if arm != control else []
        return f"{with_spread(values, '+.1f')} (n {len(values)})" if values else "-"

    controls = [arm for arm in CONTROLS if arm in {*masks["arm"]}]
    return text_table(masks, {"arm": "arm"}, {f"less {control}": partial(text, control) for control in controls})


def rates(validation: pd.DataFrame) -> pd.DataFrame:
    """The learning rate that was chosen an arm and fraction, and the mask AP on the validation images with it."""
    columns = {"arm": "arm", "percent": "annotated", "seed": "seed", "learning_rate": "learning rate"}
    table = text_table(validation, columns, {"mask AP, validation": lambda run: with_spread(run["value"])})
    return table.assign(annotated=table["annotated"] + " %")


def pictures(finished: FinishedTable) -> Gallery:
    """Fig. 8-10: the fewest annotations and the first seed."""
    experiment = finished.experiment
    wanted, dataset = (min(experiment.grid["percents"]), experiment.grid["seeds"][0]), experiment.one_of("test")
    shown = {one.run.arm: one for one in finished.runs if (one.run.percent, one.run.seed) == wanted}
    files = {arm: one.detections(dataset) for arm, one in shown.items()}
    config = next(iter(shown.values())).task.settings
    return Gallery(files, dataset, choose(get_records(dataset)), config, "_arms.jpg", "arms")


def choose(records: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Ids of the images at QUANTILES of the number of cells, each once; what an arm finds in them has no say."""
    ordered = sorted(records, key=lambda record: len(record["annotations"]))
    places = [round(quantile * (len(ordered) - 1)) for quantile in QUANTILES]
    return list(dict.fromkeys(ordered[place]["image_id"] for place in places))


register_table("cupre", Cupre())
