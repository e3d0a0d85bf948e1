#!/usr/bin/env python
"""The paper's Table II in one command: `python tools/reproduce.py --scale mini --dataset bbbc038`.

Arms x annotated fractions x seeds. Stages that pipelines share are trained once; the same command again goes on where it
stopped. The learning rate of fine-tuning is chosen an arm and fraction on the validation images, with the first seed;
the test images are read once, by the chosen runs. Overrides follow as train_net.py takes them: `STAGE.KEY value`.
"""

import argparse
import logging
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from cupre_d2.data import get_records
from cupre_d2.engine import preemption
from cupre_d2.engine.results import versions
from cupre_d2.errors import ConfigError
from cupre_d2.experiments import html, page, runner
from cupre_d2.experiments.engines import ENGINES
from cupre_d2.experiments.grid import SCALES, Experiment, load_grid
from cupre_d2.experiments.learning import read_curve
from cupre_d2.experiments.outcome import Origin, Outcome, check_earlier
from cupre_d2.experiments.plan import Plan
from cupre_d2.experiments.scores import Row, validation
from cupre_d2.one_line_errors import one_line_errors

ROOT = Path(__file__).parents[1]

logger = logging.getLogger("cupre_d2.reproduce")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="mini", help="mini: hours on two CPU cores; paper: full size")
    parser.add_argument("--dataset", default="bbbc038", help="the target, e.g. bbbc038 or livecell")
    parser.add_argument("--arms", nargs="+", help="default: those of configs' reproduce.yaml, as for what follows")
    parser.add_argument("--percents", nargs="+", type=float)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--learning-rates", nargs="+", type=float)
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
        "--results", type=Path, help="writes this path with .json, .md, .png and _report.html; default: below --output"
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, what is done and how long it takes")
    parser.add_argument("opts", nargs="*", metavar="STAGE.KEY value", help="overrides for all pipelines; after --")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: expected 1 or more")
    folder = ROOT / "configs" / SCALES[args.scale]
    given = {key: getattr(args, key) for key in ("arms", "percents", "seeds", "learning_rates")}
    experiment = Experiment(args.dataset, folder, load_grid(folder, **given), tuple(args.opts))
    output = args.output or ROOT / "output" / "reproduce" / args.scale
    results = args.results or output / f"cupre_{args.dataset}_{args.scale}"
    check_earlier(results, experiment)
    if not args.plan:
        setup_logger(str(output / "log.txt"), name="cupre_d2")
    # Missing test images would show in the end only.
    get_records(f"{args.dataset}_test")
    plan = Plan(experiment, output / "stages")
    engine = ENGINES[args.engine](args.jobs)
    if args.plan:
        return print("\n".join(plan.lines(engine.slots)))
    run(plan, engine)
    write(plan, results)


def run(plan: Plan, engine: runner.Engine) -> None:
    """Trials first, as they choose the learning rates of the runs."""

    def outlook() -> str:
        return plan.outlook(engine.slots)

    runner.run(plan.with_needs(plan.trials.values()), engine, outlook)
    runner.run(plan.with_needs(plan.runs().values()), engine, outlook)
    runner.run({test.key: test for test in plan.tests().values()}, engine, outlook)


def write(plan: Plan, results: Path) -> None:
    """Of a plan that is all done."""
    dataset, tests = plan.experiment.dataset, plan.tests()
    rows = [
        Row(cell, validation(dataset, task), tests[cell].metrics(), read_curve(task, dataset))
        for cell, task in plan.runs().items()
    ]
    command = shlex.join(["python", "tools/reproduce.py", *sys.argv[1:]])
    origin = Origin(command, commit(), {"python": platform.python_version(), **versions()})
    outcome = Outcome(plan.experiment, origin, results, rows, tests)
    outcome.save()
    page.write_page(outcome)
    html.write_report(outcome)
    logger.info(f"results: {outcome.beside('.md')}")


def commit() -> str:
    """Short hash of the checkout, with + where files differ from it; "unknown" outside of one."""
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run([*git, "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    # By default a cluster's signals would leave the processes behind, and the next run would start them twice.
    with preemption.watching(), one_line_errors():
        main(parse_args())
