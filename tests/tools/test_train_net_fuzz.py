"""Broken configs and overrides end with one line that names what is wrong, and exit code 2, before anything trains."""

import random
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cupre_d2.config import default_config
from cupre_d2.engine import pipeline

CONFIG = "configs/mini/cupre_bbbc038_5pct.yaml"
STAGES = Path("configs/mini/stages").resolve()

NUMBERS = ("abc", "-1", "nan", "[]", "None")
BROKEN: dict[str, tuple[str, ...]] = {
    "TRAINER": ("Detectiontrainer", "", "3"),
    "SOLVER.BASE_LR": (*NUMBERS, "0.0", "inf", "-0.1"),
    "SOLVER.MAX_ITER": (*NUMBERS, "0", "1.5"),
    "SOLVER.IMS_PER_BATCH": (*NUMBERS, "0", "2.0"),
    "SOLVER.MOMENTUM": (*NUMBERS, "1.0", "-0.1"),
    "SOLVER.WEIGHT_DECAY": (*NUMBERS, "-0.1"),
    "SOLVER.OPTIMIZER": ("Adam", "sgd", "7"),
    "SOLVER.LR_SCHEDULER_NAME": ("Cosine", ""),
    "SOLVER.WARMUP_ITERS": (*NUMBERS, "2.5"),
    "SOLVER.WARMUP_METHOD": ("exp", ""),
    "SOLVER.WARMUP_FACTOR": (*NUMBERS, "-1.0", "2.0"),
    "SOLVER.GAMMA": (*NUMBERS, "-1.0", "0.0"),
    "SOLVER.STEPS": ("(-1,)", "(5, 3)", "abc", "('a',)"),
    "SOLVER.CHECKPOINT_PERIOD": (*NUMBERS, "0"),
    "SOLVER.CHECKPOINT_KEEP": (*NUMBERS, "0"),
    "SOLVER.ACCUMULATE": (*NUMBERS, "0", "1000"),
    "SOLVER.NONFINITE_LIMIT": (*NUMBERS, "0"),
    "SOLVER.AMP.DTYPE": ("float8", "half", "32"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("whole", ""),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (*NUMBERS, "0.0"),
    "SOLVER.L2SP.ALPHA": (*NUMBERS, "1.5", "-0.5"),
    "SOLVER.L2SP.WEIGHT": (*NUMBERS, "-0.5"),
    "AMT2.ROUNDS": (*NUMBERS, "0", "1000"),
    "AMT2.MOCO_ITERS": NUMBERS,
    "AMT2.COCO_ITERS": NUMBERS,
    "AMT2.FREEZE_BACKBONE": ("thawed", ""),
    "AMT2.MOCO": NUMBERS,
    "AMT2.MOCO_SOLVER.OPTIMIZER": ("LARS",),
    "AMT2.MOCO_SOLVER.BASE_LR": (*NUMBERS, "0.0"),
    "AMT2.MOCO_SOLVER.IMS_PER_BATCH": (*NUMBERS, "0"),
    "AMT2.MOCO_SOLVER.ACCUMULATE": (*NUMBERS, "0", "500"),
    "AMT2.MOCO_SOLVER.STEPS": ("(-1,)", "(5, 3)", "abc"),
    "AMT2.MOCO_SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("whole", ""),
    "MODEL.META_ARCHITECTURE": ("MaskRCNN", ""),
    "MODEL.BACKBONE.NAME": ("build_resnest", ""),
    "MODEL.BACKBONE.FREEZE_AT": (*NUMBERS, "6"),
    "MODEL.RESNETS.DEPTH": (*NUMBERS, "51"),
    "MODEL.RESNETS.NORM": ("Group", "XN"),
    "MODEL.RESNETS.GN_GROUPS": (*NUMBERS, "0"),
    "MODEL.RESNETS.RADIX": (*NUMBERS, "0"),
    "MODEL.RESNETS.WIDTH_MULTIPLIER": (*NUMBERS, "-1.0"),
    "MODEL.FPN.OUT_CHANNELS": (*NUMBERS, "0"),
    "MODEL.FPN.NORM": ("XN",),
    "MODEL.FPN.IN_FEATURES": ("['res9']", "res2"),
    "MODEL.PIXEL_MEAN": ("[1.0]", "[]", "abc", "['a', 'b', 'c']"),
    "MODEL.PIXEL_STD": ("[0.0, 1.0, 1.0]", "[]", "[1.0, 1.0, -1.0]"),
    "MODEL.DEVICE": ("tpu9", "", "5"),
    "MODEL.WEIGHTS": ("nowhere.pth", "https://example.org/model.pth", "stage:finetune"),
    "MODEL.BACKBONE_WEIGHTS": ("nowhere.pth", "stage:moca"),
    "MODEL.MOCO.DIM": (*NUMBERS, "0"),
    "MODEL.MOCO.QUEUE_SIZE": (*NUMBERS, "0"),
    "MODEL.MOCO.MOMENTUM": (*NUMBERS, "1.5"),
    "MODEL.MOCO.TEMPERATURE": (*NUMBERS, "0.0"),
    "MODEL.MOCO.PROJECTOR": ("conv", ""),
    "MODEL.MOCO.BN_SPLITS": (*NUMBERS, "0"),
    "MODEL.RPN.HEAD_NAME": ("Head",),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": (*NUMBERS, "0"),
    "MODEL.RPN.NMS_THRESH": (*NUMBERS, "1.5"),
    "MODEL.RPN.IOU_THRESHOLDS": ("[2.0, 3.0]", "[]"),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (*NUMBERS, "0"),
    "MODEL.ROI_HEADS.NAME": ("Heads", ""),
    "MODEL.ROI_HEADS.NUM_CLASSES": (*NUMBERS, "0", "7"),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (*NUMBERS, "2.0"),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (*NUMBERS, "0"),
    "MODEL.ROI_BOX_HEAD.NAME": ("Box",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("Align",),
    "MODEL.ROI_MASK_HEAD.NAME": ("Mask",),
    "MODEL.ANCHOR_GENERATOR.SIZES": ("[[-8]]", "[]", "8"),
    "INPUT.FORMAT": ("CMYK", ""),
    "INPUT.MASK_FORMAT": ("png", ""),
    "INPUT.MIN_SIZE_TRAIN": ("(0,)", "()", "('a',)"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("any",),
    "INPUT.RANDOM_FLIP": ("both",),
    "INPUT.CROP.TYPE": ("random",),
    "INPUT.PERCENTILES": ("(5, 1)", "(1,)", "('a', 'b')"),
    "INPUT.VIEWS.SIZE": (*NUMBERS, "0"),
    "INPUT.VIEWS.SCALE": ("(0.5, 0.1)", "(0.0, 1.0)", "()"),
    "INPUT.VIEWS.JITTER": ("(1.0,)", "(0.4, 0.4, 0.4, 0.9)"),
    "INPUT.VIEWS.BLUR_PROB": (*NUMBERS, "1.5"),
    "INPUT.CELL_AUGMENTATION.SIZE": (*NUMBERS, "0"),
    "INPUT.CELL_AUGMENTATION.PROB": (*NUMBERS, "1.5"),
    "INPUT.CELL_AUGMENTATION.SCALE": ("(2.0, 0.5)", "(0.0, 1.0)", "(1.0,)", "()"),
    "INPUT.CELL_AUGMENTATION.SCALE_PROB": (*NUMBERS, "-0.5"),
    "CLUSTERING.ALGORITHM": ("k-means", ""),
    "CLUSTERING.CLUSTERS": (*NUMBERS, "0"),
    "CLUSTERING.SAMPLES": (*NUMBERS, "0"),
    "CLUSTERING.COMPONENTS": (*NUMBERS, "0"),
    "CLUSTERING.CROP": (*NUMBERS, "0"),
    "CLUSTERING.PERIOD": NUMBERS,
    "CLUSTERING.NORM_POLICY": ("eval", ""),
    "DATALOADER.NUM_WORKERS": (*NUMBERS, "1.5"),
    "DATASETS.TRAIN": ("('no_such_data',)", "()", "('bbbc038_train_0pct',)", "('bbbc038_train_500pct',)"),
    "DATASETS.TEST": ("('bbbc038_vall',)",),
    "DATASETS.UNLABELED": ("('cells',)",),
    "TEST.EVAL_PERIOD": NUMBERS,
    "TEST.DETECTIONS_PER_IMAGE": (*NUMBERS, "0"),
    "TEST.OVERLAYS": NUMBERS,
    "TEST.EVALUATORS": ("('coco',)", "()"),
    "TEST.CELL_COCO.MAX_DETS": ("(0,)", "()", "(100, 10)"),
    "TEST.CELL_COCO.AREA_LIMITS": ("(900, 100)", "(-1, 2)"),
    "NO.SUCH.KEY": ("1",),
    "SOLVER.BASE_LRR": ("0.1",),
    "SOLVER": ("1",),
    "finetun.SOLVER.BASE_LR": ("0.1",),
    "PIPELINE.STAGES": ("['a.yaml']",),
}


def confused(rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """A value of another type for keys drawn from all there are."""
    keys = list(flat(default_config()))
    for key, value in rng.sample(keys, len(keys)):
        if isinstance(value, bool):
            yield key, rng.choice(("3.5", "abc", "[1]"))
        elif isinstance(value, int | float):
            yield key, rng.choice(("abc", "[1]", "(2, 'x')"))
        elif isinstance(value, str):
            yield key, rng.choice(("17", "[1]", "3.5"))
        elif isinstance(value, list | tuple):
            yield key, rng.choice(("17", "abc", "3.5"))
        else:
            continue
        count -= 1
        if not count:
            return


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif prefix + key != "VERSION":
            yield prefix + key, value


FILES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda config: None,
    "a list": lambda config: [1, 2],
    "a word": lambda config: "hello",
    "no stages": lambda config: {"PIPELINE": {"STAGES": []}},
    "stages of numbers": lambda config: {"PIPELINE": {"STAGES": [1]}},
    "stages no list": lambda config: {"PIPELINE": {"STAGES": 5}},
    "pipeline a list": lambda config: {"PIPELINE": [1]},
    "missing stage": lambda config: {"PIPELINE": {"STAGES": ["stages/none.yaml"]}},
    "a stage twice": lambda config: {"PIPELINE": {"STAGES": [config["PIPELINE"]["STAGES"][0]] * 2}},
    "unknown key": lambda config: {**config, "SOLVR": {"MAX_ITER": 3}},
    "a value for a section": lambda config: {**config, "SOLVER": 3},
    "a section for a value": lambda config: {**config, "TRAINER": {"NAME": "x"}},
    "odd overrides": lambda config: {"PIPELINE": {**config["PIPELINE"], "OVERRIDES": ["amt2.SEED"]}},
    "overrides of all": lambda config: {"PIPELINE": {**config["PIPELINE"], "OVERRIDES": ["SEED", 1]}},
    "output a number": lambda config: {**config, "OUTPUT_DIR": 5},
    "base missing": lambda config: {**config, "_BASE_": "none.yaml"},
    "base itself": lambda config: {**config, "_BASE_": "broken.yaml"},
}
TEXTS = {
    "not yaml": "PIPELINE: [\n",
    "tabs": "PIPELINE:\n\tSTAGES: []\n",
    "python tag": "!!python/object/apply:os.system ['true']\n",
    "python name": "SEED: !!python/name:os.system\n",
    "binary": "\x00\x01\x02",
    "key twice in a flow": "{SEED: 1, SEED",
}


class Started(BaseException):
    """Training was reached."""


@pytest.fixture()
def tool(
    small_datasets: Path,
    slim: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """Runs train_net.py in this process; returns its exit code and what it wrote to stderr."""

    def start(job: pipeline.Job) -> None:
        raise Started

    monkeypatch.setattr(pipeline, "run", start)
    monkeypatch.setattr(pipeline, "log_to", lambda folder: None)

    def run(*opts: str, config: str = CONFIG) -> tuple[int, str]:
        base = ["OUTPUT_DIR", str(tmp_path / "out"), *slim, "finetune.DATASETS.TRAIN", "('bbbc038_train',)"]
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", config, *base, *opts])
        capsys.readouterr()
        try:
            runpy.run_path("tools/train_net.py", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        except Started:
            return -1, ""
        except Exception as error:
            return 1, repr(error)
        return 0, ""

    return run


def refused(code: int, printed: str, *names: str) -> str:
    """Why this is no good refusal, which names one of `names`; "" for a good one."""
    if code != 2:
        return f"exit code {code} {printed}"
    lines = [line for line in printed.splitlines() if line.startswith("train_net.py: ")]
    if len(lines) != 1 or "Traceback" in printed or len(lines[0]) > 700:
        return f"printed {printed[-300:]!r}"
    if names and not any(name in lines[0] for name in names):
        return f"does not name {' or '.join(names)}: {lines[0]}"
    return ""


def test_the_config_itself_trains(tool: Callable[..., tuple[int, str]]) -> None:
    assert tool() == (-1, "")


def test_broken_values(tool: Callable[..., tuple[int, str]]) -> None:
    cases = [(key, value) for key, values in BROKEN.items() for value in values]
    failures = []
    for key, value in cases:
        more = ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "INPUT.CROP.ENABLED", "True")
        # Detectron2's builders know a wrong value, not its key.
        words = [word for word in re.findall(r"[A-Za-z]\w+", value) if word not in ("None", "nan")] if value else ["''"]
        if why := refused(*tool(*more, key, value), key.split(".")[-1], *words):
            failures.append(f"{key} {value}: {why}")
    assert len(cases) >= 300 and not failures, "\n".join(failures)


def test_values_of_other_types(tool: Callable[..., tuple[int, str]]) -> None:
    failures = []
    for key, value in confused(random.Random(0), 100):
        if why := refused(*tool(key, value), key.split(".")[-1]):
            failures.append(f"{key} {value}: {why}")
    assert not failures, "\n".join(failures)


def test_broken_files(tool: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    good = {"PIPELINE": {"STAGES": [str(STAGES / "coco_pretrain.yaml"), str(STAGES / "amt2.yaml")]}}
    texts = {name: yaml.safe_dump(change(good)) for name, change in FILES.items()} | TEXTS
    failures = []
    for name, text in texts.items():
        (tmp_path / "broken.yaml").write_text(text)
        if why := refused(*tool(config=str(tmp_path / "broken.yaml")), "broken.yaml", "OUTPUT_DIR", "none.yaml", "SEED"):
            failures.append(f"{name}: {why}")
    assert not failures, "\n".join(failures)
