"""A paper's table in one command: `cupre-d2 reproduce --scale mini --dataset bbbc038`.

Stages that pipelines share are trained once; the same command again goes on where it stopped. Overrides follow as train
takes them: `STAGE.KEY value` reaches the pipelines that have the stage.
"""

import argparse
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from cupre_d2.data.targets import register_dataset_file
from cupre_d2.engine.stages import SHIPPED
from cupre_d2.errors import ConfigError
from cupre_d2.experiments import cupre, neural_gas  # noqa: F401 (registers the tables)
from cupre_d2.experiments.engines import ENGINES
from cupre_d2.experiments.origin import Origin, beside, check_earlier
from cupre_d2.experiments.plan import Plan
from cupre_d2.experiments.tables import TABLES, Experiment, read_grid
from cupre_d2.files import hold

# Folders of the pipelines' configs below configs/.
SCALES = {"mini": "mini", "paper": ""}

logger = logging.getLogger("cupre_d2.reproduce")


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    tables = "\n\n".join(f"--table {name}: {inspect.getdoc(table)}" for name, table in TABLES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=tables, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=TABLES, default="cupre", help="default: cupre")
    parser.add_argument("--scale", choices=SCALES, default="mini", help="mini: hours on two CPU cores; paper: full size")
    parser.add_argument(
        "--dataset", help="the target, e.g. bbbc038 or livecell; default: the table's, or that of --datasets"
    )
    parser.add_argument("--datasets", metavar="FILE", help="YAML file of own data sets, which says what they are for")
    for name in dict.fromkeys(name for table in TABLES.values() for name in table.lists):
        takers = ", ".join(title for title, table in TABLES.items() if name in table.lists)
        parser.add_argument(
            "--" + name.replace("_", "-"),
            nargs="+",
            metavar=name[:-1].upper(),
            help=f"of {takers}: in place of those in configs' reproduce_TABLE.yaml",
        )
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
        help="how its files begin: .json, .csv, .md, _report.html and figures; default: below --output",
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, what is done and how long it takes")
    parser.add_argument("opts", nargs="*", metavar="STAGE.KEY value", help="overrides for all pipelines; after --")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    args = parse_args(words)
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: expected 1 or more")
    output = args.output or Path("output", "reproduce", args.scale)
    table = TABLES[args.table]
    own = register_dataset_file(args.datasets) if args.datasets else None
    dataset = args.dataset or (own.name if own else table.dataset)
    results = args.results or output / f"{args.table}_{dataset}_{args.scale}"
    given = {name: getattr(args, name) for any_table in TABLES.values() for name in any_table.lists}
    configs = (table.configs or SHIPPED) / SCALES[args.scale]
    grid = read_grid(table, configs, given)
    experiment = Experiment(table, dataset, configs, grid, tuple(args.opts), args.datasets or "")
    check_earlier(results, experiment.identity())
    if not args.plan:
        hold(output, "running experiments there")
        setup_logger(str(output / "log.txt"), name="cupre_d2")
    # Before hours of work, in which the checkout may change.
    origin = Origin.of_this_process()
    plan = Plan(experiment, output / "stages")
    engine = ENGINES[args.engine](args.jobs)
    if args.plan:
        return print("\n".join(plan.lines(engine.slots)))
    plan.run(engine)
    plan.write(results, origin)
    logger.info(f"results: {beside(results, '.md')}")
