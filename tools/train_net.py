#!/usr/bin/env python
"""Trains a pipeline or one stage: `python tools/train_net.py --config-file configs/quickstart.yaml`.

The same command again goes on where it stopped. Overrides follow as Detectron2 takes them: `KEY value` for every stage,
`STAGE.KEY value` for one.
"""

import argparse
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser, launch

from cupre_d2.engine import pipeline
from cupre_d2.errors import CupreError


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Train or evaluate a cupre_d2 pipeline."
    parser.add_argument("--restart", action="store_true", help="remove what an earlier run left and start over")
    parser.add_argument("--stage", metavar="NAME", help="run this stage of the pipeline only")
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is needed, e.g. --config-file configs/quickstart.yaml")
    return args


def train(job: pipeline.Job) -> None:
    pipeline.log_to(job.output_dir)
    pipeline.run(job)


def evaluate(job: pipeline.Evaluation) -> None:
    pipeline.log_to(job.output_dir)
    pipeline.evaluate(job)


def main(args: argparse.Namespace) -> None:
    job: pipeline.Job | pipeline.Evaluation
    if args.eval_only:
        job = pipeline.prepare_evaluation(args.config_file, args.opts, args.stage)
    else:
        job = pipeline.prepare(args.config_file, args.opts, args.stage, args.restart)
    launch(
        evaluate if args.eval_only else train,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(job,),
    )


if __name__ == "__main__":
    try:
        main(parse_args())
    except CupreError as error:
        # A loader's process sends its error with its stack; the last line is the error.
        line = str(error).splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        sys.exit(2)
