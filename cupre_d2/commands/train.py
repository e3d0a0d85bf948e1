"""Trains a pipeline or one stage: `cupre-d2 train --config-file configs/quickstart.yaml`.

The same command again goes on where it stopped. Overrides follow as Detectron2 takes them: `KEY value` for every stage,
`STAGE.KEY value` for one. `--num-gpus N` starts N processes, on a machine without GPUs N of its CPU; torchrun works too.

Exit codes: 0 finished; 1 training could not go on; 2 input that cannot be used or a disk that cannot be written; 75 a
signal (SIGTERM, SIGUSR1) ended it with a checkpoint: run it again.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.utils import comm

from cupre_d2.engine import distributed, eval_only, pipeline

Job = pipeline.Job | eval_only.Evaluation


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a cupre_d2 pipeline, go on with it, or evaluate what it has trained.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE", help="of a pipeline or a stage, e.g. configs/quickstart.yaml")
    parser.add_argument("--datasets", metavar="FILE", help="a YAML file of your own data sets; see docs/own_cells.md")
    parser.add_argument("--stage", metavar="NAME", help="run this stage of the pipeline only")
    parser.add_argument("--restart", action="store_true", help="remove what an earlier run left and start over")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the last stage's checkpoint, or MODEL.WEIGHTS")
    parser.add_argument("--resume", action="store_true", help="as Detectron2's; every run goes on where it stopped anyhow")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="K", help="this machine's number, from 0")
    # No default: Detectron2's is one port a user, for which two runs would fight.
    parser.add_argument("--dist-url", metavar="URL", help="of the first machine, tcp://HOST:PORT")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY value", help="overrides, at the end")
    args = parser.parse_args(words)
    for word in args.opts:
        if word.startswith("--"):
            parser.error(f"{word} stands behind KEY value; options go before them")
    if not args.config_file:
        parser.error("--config-file is needed, e.g. --config-file configs/quickstart.yaml")
    if min(args.num_gpus, args.num_machines) < 1:
        parser.error(f"--num-gpus {args.num_gpus}, --num-machines {args.num_machines}: processes; expected 1 or more")
    if args.datasets is not None:
        args.opts += ["DATASETS.FILE", args.datasets]
    return args


def prepare(args: argparse.Namespace, first: bool, processes: int) -> Job:
    if args.eval_only:
        return eval_only.prepare_evaluation(args.config_file, args.opts, args.stage, processes)
    return pipeline.prepare(args.config_file, args.opts, args.stage, args.restart, first, processes)


def work(job: Job) -> None:
    if any(stage.cfg.MODEL.DEVICE == "cpu" for stage in job.stages):
        distributed.keep_freed_memory()
    pipeline.log_to(job.output_dir)
    if isinstance(job, eval_only.Evaluation):
        eval_only.evaluate(job)
    else:
        pipeline.run(job)


def main(words: Sequence[str]) -> Any:
    args = parse_args(words)
    if distributed.under_torchrun():
        distributed.join_torchrun()
        processes = comm.get_world_size()
        work(distributed.on_first_then_others(lambda first: prepare(args, first, processes)))
    else:
        job = prepare(args, args.machine_rank == 0, args.num_gpus * args.num_machines)
        distributed.launch(work, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (job,))
