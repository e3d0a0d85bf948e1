#!/usr/bin/env python
"""A paper's table in one command: `python tools/reproduce.py --scale mini --dataset bbbc038`.

--table cupre (the default): Table II of CUPre, arms x annotated fractions x seeds. The learning rate of fine-tuning is
chosen an arm and fraction on the validation images, with the first seed; the test images are read once, by the chosen runs.
It takes --arms, --percents, --learning-rates and --seeds.

--table neural_gas: deep clustering, algorithms x numbers of clusters x seeds, all of one segmentation network. It takes
--algorithms, --clusters and --seeds.

Stages that pipelines share are trained once; the same command again goes on where it stopped. Overrides follow as
train_net.py takes them: `STAGE.KEY value`.
"""

import argparse
import logging
from pathlib import Path

from detectron2.utils.logger import setup_logger

from cupre_d2.engine import lock, preemption
from cupre_d2.errors import ConfigError, one_line_errors
from cupre_d2.experiments.comparisons import TABLES
from cupre_d2.experiments.engines import ENGINES
from cupre_d2.experiments.results import Origin, beside, check_earlier

ROOT = Path(__file__).parents[1]
# Folders of the pipelines' configs below configs/.
SCALES = {"mini": "mini", "paper": ""}
# What a table combines, and the type of each value; which of them depends on the table.
LIST_HELP = "in place of the table's own; see its file of lists in configs"
LISTS = {"arms": str, "percents": float, "learning_rates": float, "algorithms": str, "clusters": int, "seeds": int}

logger = logging.getLogger("cupre_d2.reproduce")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="cupre", help="cupre: Table II; neural_gas: deep clustering's")
    parser.add_argument("--scale", choices=SCALES, default="mini", help="mini: hours on two CPU cores; paper: full size")
    parser.add_argument("--dataset", default="bbbc038", help="the target, e.g. bbbc038 or livecell")
    for name, kind in LISTS.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, nargs="+", type=kind, metavar=name[:-1].upper(), help=LIST_HELP)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side on a machine, which share its cores")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="ray: on the machines of a Ray cluster, each with this checkout, its environment and the data at the same "
        "paths; --output must be on a file system that all of them share",
    )
    parser.add_argument("--output", type=Path, help="default: output/reproduce/SCALE")
    parser.add_argument(
        "--results",
        type=Path,
        help="how its files begin: .json, .md, _report.html and figures; default: below --output",
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, what is done and how long it takes")
    parser.add_argument("opts", nargs="*", metavar="STAGE.KEY value", help="overrides for all pipelines; after --")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: expected 1 or more")
    output = args.output or ROOT / "output" / "reproduce" / args.scale
    results = args.results or output / f"{args.table}_{args.dataset}_{args.scale}"
    given = {key: getattr(args, key) for key in LISTS}
    configs = ROOT / "configs" / SCALES[args.scale]
    table = TABLES[args.table]
    experiment = table.experiment(args.dataset, configs, table.load_grid(configs, given), tuple(args.opts))
    check_earlier(results, experiment.identity())
    if not args.plan:
        lock.hold(output, "running experiments there")
        setup_logger(str(output / "log.txt"), name="cupre_d2")
    # Before hours of work, in which the checkout may change.
    origin = Origin.of_this_process()
    comparison = table.comparison(experiment, output / "stages")
    engine = ENGINES[args.engine](args.jobs)
    if args.plan:
        return print("\n".join(comparison.lines(engine.slots)))
    comparison.run(engine)
    comparison.write(results, origin)
    logger.info(f"results: {beside(results, '.md')}")


if __name__ == "__main__":
    # By default a cluster's signals would leave the processes behind, and the next run would start them twice.
    with preemption.watching(), one_line_errors():
        main(parse_args())
