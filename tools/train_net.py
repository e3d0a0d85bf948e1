#!/usr/bin/env python
"""Trains a pipeline or one stage: `python tools/train_net.py --config-file configs/quickstart.yaml`.

The same command again goes on where it stopped. Overrides follow as Detectron2 takes them: `KEY value` for every stage,
`STAGE.KEY value` for one. `--num-gpus N` starts N processes, on a machine without GPUs N of its CPU; torchrun works too.

Exit codes: 0 finished; 1 training could not go on; 2 input that cannot be used or a disk that cannot be written; 75 a
signal (SIGTERM, SIGUSR1) ended it with a checkpoint: run it again.
"""

import argparse

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from cupre_d2.engine import distributed, evaluation, pipeline, preemption
from cupre_d2.engine.allocator import keep_freed_memory
from cupre_d2.engine.preflight import check_processes
from cupre_d2.errors import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Train or evaluate a cupre_d2 pipeline."
    # Detectron2's default is one port a user, for which two runs would fight.
    parser.set_defaults(dist_url=None)
    parser.add_argument("--restart", action="store_true", help="remove what an earlier run left and start over")
    parser.add_argument("--stage", metavar="NAME", help="run this stage of the pipeline only")
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is needed, e.g. --config-file configs/quickstart.yaml")
    if min(args.num_gpus, args.num_machines) < 1:
        parser.error(f"--num-gpus {args.num_gpus}, --num-machines {args.num_machines}: processes; expected 1 or more")
    return args


def prepare(args: argparse.Namespace, restart: bool, first: bool) -> pipeline.Job | evaluation.Evaluation:
    if args.eval_only:
        return evaluation.prepare_evaluation(args.config_file, args.opts, args.stage)
    return pipeline.prepare(args.config_file, args.opts, args.stage, restart, first)


def work(job: pipeline.Job | evaluation.Evaluation) -> None:
    if any(stage.cfg.MODEL.DEVICE == "cpu" for stage in job.stages):
        keep_freed_memory()
    pipeline.log_to(job.output_dir)
    if isinstance(job, evaluation.Evaluation):
        evaluation.evaluate(job)
    else:
        pipeline.run(job)


def main(args: argparse.Namespace) -> None:
    if distributed.under_torchrun():
        distributed.join_torchrun()
        job = distributed.on_first_then_others(lambda first: prepare(args, args.restart and first, first))
        check_processes(job.stages, comm.get_world_size())
        work(job)
    else:
        job = prepare(args, args.restart, args.machine_rank == 0)
        check_processes(job.stages, args.num_gpus * args.num_machines)
        distributed.launch(work, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (job,))


if __name__ == "__main__":
    with preemption.watching(), one_line_errors():
        main(parse_args())
