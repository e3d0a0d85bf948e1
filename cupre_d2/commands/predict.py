"""Finds the cells in images: `cupre-d2 predict output/my_model 'plate/*.tif' --output plate_cells`.

MODEL is a model package, the folder that `cupre-d2 train` wrote to (its OUTPUT_DIR), or a checkpoint.

INPUT is any number of images, folders of images (sub-folders are left out; 'FOLDER/**/*.tif' takes them too), or names of
data sets: TIFF of 8 to 32 bits (OME-TIFF, pyramids, stacks), PNG, JPEG, BMP, WebP, OME-Zarr. Stacks and time-lapses are
taken page by page. Large images are cut into overlapping tiles, and the cells put together again.

The output folder then holds report.html, counts.csv (a row an image), measurements/ (a table an image, a row a cell) and
labels/ (an image an image, whose pixels are the numbers of cells: for Fiji, QuPath, napari). See docs/predict.md.

The same command again goes on where it stopped, and takes what is new. Exit codes: 0 all done; 1 some images failed, each
said in a line; 2 nothing could be used; 75 a signal (SIGTERM, SIGUSR1) ended it after an image: run it again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cupre_d2.engine import distributed
from cupre_d2.predict.outputs import DEFAULT, FORMATS, Outputs
from cupre_d2.predict.run import predict
from cupre_d2.predict.segmenter import Model, Segmenter, load_model


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Find the cells in images.", epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a model package, a training's folder, or a checkpoint")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="images, folders, patterns in quotes, data sets")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or one of the same command before")
    parser.add_argument(
        "--format",
        type=_names,
        action="extend",
        metavar="NAME,...",
        help=f"what to write, of {', '.join(FORMATS)}; by default {','.join(DEFAULT)}",
    )
    parser.add_argument(
        "--diameter",
        type=_diameter,
        metavar="PX",
        help="of a typical cell in these images, pixels, where the magnification is not that of the training images; auto: "
        "estimated of each image",
    )
    parser.add_argument(
        "--channels",
        type=_numbers,
        metavar="N,...",
        help="of images with many channels the one to take, or three, counted from 0; by default as in the training images",
    )
    parser.add_argument("--datasets", metavar="FILE", help="a YAML file of your own data sets; without INPUT all of them")
    parser.add_argument("--tta", action="store_true", help="look at flipped copies too: better, in four times the time")
    parser.add_argument("--tile", type=int, default=0, metavar="PX", help="side of a tile; by default as memory allows")
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="tiles at a time; by default as memory allows")
    parser.add_argument("--device", default="", metavar="NAME", help="cpu or cuda:N; by default the GPU where there is one")
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="of a checkpoint that has no config.yaml beside it"
    )
    args = parser.parse_args(words)
    if not args.inputs and args.datasets is None:
        parser.error("an INPUT is needed: images, a folder, or a data set")
    return args


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if len(words) not in (1, 3) or not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text}: expected one or three numbers from 0, as 2 or 2,0,1")
    return [int(word) for word in words]


def _diameter(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("expected pixels, or auto") from error


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    model = load_model(args.model, args.device, args.config_file)
    if model.cfg.MODEL.DEVICE == "cpu":
        distributed.keep_freed_memory()
    # Temporary files are as large as the outputs, for which there has to be room there anyhow.
    segmenter = Segmenter(
        model, diameter=args.diameter, tile=args.tile, batch=args.batch, tta=args.tta, folder=Path(args.output).expanduser()
    )
    outcome = predict(
        args.inputs,
        args.output,
        segmenter,
        Outputs(args.output, _classes(model), args.format or DEFAULT),
        {"diameter": args.diameter, "tile": args.tile or None, "tta": args.tta},
        datasets=args.datasets,
        channels=args.channels,
        trained_channels=model.channels,
    )
    before = f" ({outcome.kept} done before)" if outcome.kept else ""
    print(f"images: {outcome.done + outcome.kept}{before}, cells: {outcome.cells}, in {args.output}")
    if outcome.empty:
        shown = ", ".join(outcome.empty[:10]) + (", ..." if len(outcome.empty) > 10 else "")
        print(f"images without a cell: {len(outcome.empty)} ({shown})")
    if outcome.failures:
        print(f"failed: {len(outcome.failures)}, as said above")
    return outcome.exit_code


def _classes(model: Model) -> Sequence[str]:
    """Those that a package knows; of a checkpoint, numbers."""
    known = getattr(model, "classes", None)
    if known:
        return known
    heads = model.cfg.MODEL
    count = 1 if heads.META_ARCHITECTURE == "SemanticWatershed" else heads.ROI_HEADS.NUM_CLASSES
    return ["cell"] if count == 1 else [f"class {number}" for number in range(1, count + 1)]
