#!/usr/bin/env python
"""Trains a pipeline or one stage: `python tools/train_net.py --config-file configs/quickstart.yaml`.

The same command again goes on where it stopped. Overrides follow as Detectron2 takes them: `KEY value` for every stage,
`STAGE.KEY value` for one.
"""

import argparse
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from cupre_d2.engine import pipeline
from cupre_d2.engine.stages import load_stages
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


def prepare(args: argparse.Namespace) -> dict[str, int]:
    """All that can fail on bad input, before any process is started."""
    output_dir, stages = load_stages(args.config_file, args.opts)
    chosen = pipeline.select(stages, args.stage)
    if args.eval_only:
        pipeline.weights_to_evaluate(chosen[-1], args.opts)
        pipeline.trainer_class(chosen[-1]).plan(chosen[-1].cfg)
        return {}
    steps = pipeline.check(stages, chosen, args.restart)
    pipeline.open_folder(output_dir, stages, chosen, args.restart)
    return steps


def main(args: argparse.Namespace, steps: dict[str, int]) -> None:
    output_dir, stages = load_stages(args.config_file, args.opts)
    chosen = pipeline.select(stages, args.stage)
    for name in ("detectron2", "fvcore", "cupre_d2"):
        setup_logger(str(Path(output_dir) / "log.txt"), distributed_rank=comm.get_rank(), name=name)
    if args.eval_only:
        pipeline.evaluate(chosen[-1], pipeline.weights_to_evaluate(chosen[-1], args.opts))
    else:
        pipeline.run(output_dir, stages, chosen, steps)


if __name__ == "__main__":
    arguments = parse_args()
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments, prepare(arguments)),
        )
    except CupreError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
