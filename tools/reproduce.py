#!/usr/bin/env python
"""The paper's Table II in one command: `python tools/reproduce.py --scale mini --dataset bbbc038`.

Arms x annotated fractions x seeds. Stages that pipelines share are trained once; the same command again goes on where it
stopped. The learning rate of fine-tuning is chosen an arm and fraction on the validation images, with the first seed;
the test images are read once, by the chosen runs. Overrides follow as train_net.py takes them: `STAGE.KEY value`.
"""

import argparse
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from detectron2.utils.logger import setup_logger

from cupre_d2.data import get_records
from cupre_d2.engine.results import versions
from cupre_d2.errors import ConfigError, CupreError
from cupre_d2.experiments import pictures, runner, scores, tables
from cupre_d2.experiments.grid import SCALES, Cell, Experiment, load_grid
from cupre_d2.experiments.tasks import Evaluation, TaskList

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
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side; the cores are divided among them")
    parser.add_argument("--output", type=Path, help="default: output/reproduce/SCALE")
    parser.add_argument("--results", type=Path, help="writes this path with .json, .md and .png; default: below --output")
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
    setup_logger(None if args.plan else str(output / "log.txt"), name="cupre_d2")
    tasks = TaskList(output / "stages")
    # Missing test images would show in the end only.
    get_records(f"{args.dataset}_test")
    grid = {cell: tasks.add(experiment.stages(cell)) for cell in experiment.first_seed()}
    if args.plan:
        return plan(experiment, tasks, args.jobs)
    outlook = partial(runner.outlook, tasks.tasks, args.jobs)
    runner.run(tasks.tasks, args.jobs, outlook)
    rates = scores.choose(args.dataset, grid)
    chosen = {cell: tasks.add(experiment.stages(cell)) for cell in experiment.all_seeds(rates)}
    runner.run(tasks.tasks, args.jobs, outlook)
    tests = {cell: Evaluation(task, f"{args.dataset}_test") for cell, task in chosen.items()}
    runner.run({test.key: test for test in tests.values()}, args.jobs, lambda: "test images")
    rows = [scores.Row(cell, scores.validation(args.dataset, task), tests[cell].metrics()) for cell, task in chosen.items()]
    results = args.results or output / f"cupre_{args.dataset}_{args.scale}"
    write(experiment, rows, results)
    draw(experiment, tests, results)
    logger.info(f"results: {results.with_suffix('.md')}")


def plan(experiment: Experiment, tasks: TaskList, jobs: int) -> None:
    """Prints a line a task; the later seeds' with the first learning rate in place of the one that will be chosen."""
    first = len(tasks.tasks)
    rate = experiment.grid.learning_rates[0]
    arms = {(arm, percent): rate for arm in experiment.grid.arms for percent in experiment.grid.percents}
    for cell in experiment.all_seeds(arms):
        tasks.add(experiment.stages(cell))
    measured = runner.paces(list(tasks.tasks.values()))
    for number, task in enumerate(tasks.tasks.values()):
        seconds = measured.of(task)
        state = "done" if task.record() else "about ? min" if seconds is None else f"about {seconds / 60:.1f} min"
        print(f"{task.key}: {task.iterations} iterations, {state}{'' if number < first else ', learning rate to be chosen'}")
    left = [task for task in tasks.tasks.values() if not task.record()]
    print(f"{len(left)} of {len(tasks.tasks)} to run, {runner.time_left(left, measured, jobs)}; evaluations not counted")


def write(experiment: Experiment, rows: Sequence[scores.Row], results: Path) -> None:
    command = shlex.join(["python", "tools/reproduce.py", *sys.argv[1:]])
    results.parent.mkdir(parents=True, exist_ok=True)
    scores.save(
        results.with_suffix(".json"), rows, command=command, commit=commit(), versions=versions(), grid=vars(experiment.grid)
    )
    tables.draw_fractions(rows, results.with_suffix(".png"))
    parts = [tables.table(rows), tables.differences(rows), tables.rates(rows)]
    text = PAGE.format(
        title=f"{experiment.dataset}: arms of CUPre", command=command, commit=commit(), name=results.name, parts=parts
    )
    results.with_suffix(".md").write_text(text)
    logger.info(f"\n{parts[0]}\n\n{parts[1]}")


def draw(experiment: Experiment, tests: Mapping[Cell, Evaluation], results: Path) -> None:
    """The fewest annotations and the first seed, a row an arm."""
    grid = experiment.grid
    shown = {cell: test for cell, test in tests.items() if (cell.percent, cell.seed) == (min(grid.percents), grid.seeds[0])}
    use_cats = experiment.stages(next(iter(shown)))[-1].cfg.TEST.CELL_COCO.USE_CATS
    files = {cell.arm: test.detections for cell, test in shown.items()}
    pictures.compare(files, f"{experiment.dataset}_test", use_cats, results.with_name(f"{results.name}_arms.png"))


PAGE = """# {title}

```
{command}
```

Commit {commit}. Every number is in [{name}.json]({name}.json). AP in percent on the test images, which were read once;
mean ± standard deviation over seeds.

{parts[0]}

![mask AP against the annotated share]({name}.png)

Mask AP less that of a control, paired by fraction and seed (coco_long: COCO pre-training with as many COCO iterations in
all as cupre gets, the control that the paper lacks):

{parts[1]}

Fine-tuning's learning rate was chosen an arm and fraction on the validation images, with the first seed:

{parts[2]}

The same test images as each arm segments them, with the fewest annotations and the first seed; they were chosen by their
number of cells alone:

![arms]({name}_arms.png)
"""


def commit() -> str:
    """Short hash of the checkout, with + where files differ from it; "unknown" outside of one."""
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run([*git, "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    try:
        main(parse_args())
    except CupreError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
