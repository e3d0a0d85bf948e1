"""Every config key this plugin adds to Detectron2's, with its meaning and unit."""

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

AddKeys = Callable[[CN], None]

_registered: list[AddKeys] = []


def register_config(add: AddKeys) -> AddKeys:
    """Registers a function that adds a project's keys to a config, in place; usable as a decorator.

    Every config that this plugin reads has them then, beside Detectron2's and its own.
    """
    if add not in _registered:
        _registered.append(add)
    return add


def default_config() -> CN:
    """Detectron2's config with this plugin's keys and those of registered projects."""
    cfg = get_cfg()
    add_cupre_config(cfg)
    for add in _registered:
        add(cfg)
    return cfg


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by whole keys, as SOLVER.BASE_LR."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# Keys of SOLVER that say nothing of a phase.
OF_STAGE = ("AMP", "CHECKPOINT_KEEP", "CHECKPOINT_PERIOD", "L2SP", "MAX_ITER", "NONFINITE_LIMIT", "REFERENCE_WORLD_SIZE")


def add_cupre_config(cfg: CN) -> None:
    """Adds this plugin's keys and their defaults to a Detectron2 config, in place."""
    # Which registered trainer runs this stage: DetectionTrainer, MoCoTrainer, AlternatingTrainer, ClusteringTrainer.
    cfg.TRAINER = "DetectionTrainer"

    # A pipeline is a config that names stages: YAML files, relative to the file that names them.
    cfg.PIPELINE = CN()
    cfg.PIPELINE.STAGES = []
    # Settings for one stage each: ["amt2.SOLVER.BASE_LR", 0.01, ...]. Other keys of a pipeline's YAML reach all stages.
    cfg.PIPELINE.OVERRIDES = []
    # The data sets that stages name as target:train, target:val, target:test and target:unlabeled; see data.targets.
    cfg.PIPELINE.TARGET = ""
    # How much of target:train is annotated: "5pct", "5pct_seed3", or "" for all of it.
    cfg.PIPELINE.SUBSET = ""
    # Of a stage: the folder, relative to its file, of what is fitted to each target's cells: TARGET.yaml, or default.yaml.
    cfg.PIPELINE.FIT = ""

    # A YAML file of data sets of one's own, as --datasets names it; see data.targets.
    cfg.DATASETS.FILE = ""

    # The unlabeled images that MoCo, AMT² and clustering learn from: dataset names; annotations, if any, are not read.
    cfg.DATASETS.UNLABELED = ()

    # Contrast of each image: grey values between these percentiles are stretched over 0 to 255, () for none. Colour images
    # of 8 bits are left as they are, if they are not grey in three channels; a record's own "percentiles" win.
    cfg.INPUT.PERCENTILES = (0.1, 99.9)

    _add_resnest(cfg)
    _add_moco(cfg)
    _add_solver(cfg)
    _add_amt2(cfg)
    _add_evaluation(cfg)
    _add_semantic_watershed(cfg)
    _add_clustering(cfg)


def _add_resnest(cfg: CN) -> None:
    resnets = cfg.MODEL.RESNETS
    # Splits of the split attention; 1 gives squeeze-and-excitation.
    resnets.RADIX = 2
    # Three 3x3 convolutions in place of one 7x7.
    resnets.DEEP_STEM = True
    # Average pooling in place of the strided 3x3 convolution of a downsampling block.
    resnets.AVD = True
    # Average pooling before the 1x1 convolution of a downsampling shortcut.
    resnets.AVG_DOWN = True
    # Channels of a bottleneck group for each 64 channels of width.
    resnets.BOTTLENECK_WIDTH = 64
    # Multiplies every channel count of the backbone; 0.5 with DEPTH 14 trains on a CPU.
    resnets.WIDTH_MULTIPLIER = 1.0
    # Groups of the backbone's GroupNorm (NORM "GN"); Detectron2 fixes 32, too many for slim layers.
    resnets.GN_GROUPS = 32
    # Stages, of res2 to res5, that compute their activations again in the backward pass rather than keep them: less memory,
    # about a third more time.
    resnets.CHECKPOINT_STAGES = ()

    # A checkpoint (or "stage:NAME") whose backbone replaces the one of MODEL.WEIGHTS; "" for none.
    cfg.MODEL.BACKBONE_WEIGHTS = ""


def _add_moco(cfg: CN) -> None:
    cfg.MODEL.MOCO = CN()
    # Length of an embedding.
    cfg.MODEL.MOCO.DIM = 128
    # Keys in the queue. The publishers' 65536 exceeds most cell data sets, whose queue would then hold an image's own keys.
    cfg.MODEL.MOCO.QUEUE_SIZE = 4096
    # Momentum of the key encoder (an exponential moving average of the query encoder's parameters).
    cfg.MODEL.MOCO.MOMENTUM = 0.999
    # Temperature of InfoNCE.
    cfg.MODEL.MOCO.TEMPERATURE = 0.2
    # Parts of a batch with batch-norm statistics of their own where one process trains, which stand in for the published
    # eight processes: without, query and key could tell each other by their batch's statistics. Other norms need none.
    cfg.MODEL.MOCO.BN_SPLITS = 8
    # "mlp" (MoCo v2) or "linear" (v1).
    cfg.MODEL.MOCO.PROJECTOR = "mlp"

    # The two views of an image. Sizes in pixels, the other numbers as torchvision.transforms.v2 takes them.
    cfg.INPUT.VIEWS = CN()
    cfg.INPUT.VIEWS.SIZE = 224
    # Share of the image's area that a view covers.
    cfg.INPUT.VIEWS.SCALE = (0.2, 1.0)
    # Brightness, contrast, saturation, hue.
    cfg.INPUT.VIEWS.JITTER = (0.4, 0.4, 0.4, 0.1)
    cfg.INPUT.VIEWS.JITTER_PROB = 0.8
    cfg.INPUT.VIEWS.GRAY_PROB = 0.2
    cfg.INPUT.VIEWS.BLUR_PROB = 0.5
    # Standard deviation of the blur, pixels of the view.
    cfg.INPUT.VIEWS.BLUR_SIGMA = (0.1, 2.0)


def _add_solver(cfg: CN) -> None:
    # "SGD" (Detectron2's), "AdamW" or "LAMB".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Parts that a batch is computed in, one after the other: the memory of a part, the gradient of the whole.
    cfg.SOLVER.ACCUMULATE = 1
    # With SOLVER.AMP.ENABLED: "float16" (with a scaler) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Steps in a row that are left out, as a loss or gradient is not finite, until training ends.
    cfg.SOLVER.NONFINITE_LIMIT = 5
    # Of the checkpoints of SOLVER.CHECKPOINT_PERIOD, how many stay; the best, those of phases' ends and the last all stay.
    cfg.SOLVER.CHECKPOINT_KEEP = 2
    # L2-SP on the backbone in place of its weight decay; α and λ as in cupre_d2.solver.l2_sp.
    cfg.SOLVER.L2SP = CN()
    cfg.SOLVER.L2SP.ENABLED = False
    # α in [0, 1]: the share that pulls to the anchor weights; the rest pulls to zero. The paper gives no value.
    cfg.SOLVER.L2SP.ALPHA = 0.5
    # Strength, in the unit of SOLVER.WEIGHT_DECAY: with ALPHA 0 this is plain weight decay of that value.
    cfg.SOLVER.L2SP.WEIGHT = 1e-4


def _add_amt2(cfg: CN) -> None:
    cfg.AMT2 = CN()
    # Rounds, and so shards of DATASETS.TRAIN.
    cfg.AMT2.ROUNDS = 10
    # Iterations of one MoCo phase and of one COCO phase; 0 is one pass over the unlabeled images, or over the shard.
    cfg.AMT2.MOCO_ITERS = 0
    cfg.AMT2.COCO_ITERS = 0
    # False leaves the MoCo phases out: what the COCO phases alone do, the same shards for as many iterations.
    cfg.AMT2.MOCO = True
    # Keeps the backbone in the COCO phase as MoCo left it; with SOLVER.L2SP.ENABLED it is held near that instead.
    cfg.AMT2.FREEZE_BACKBONE = False
    # The MoCo phase's own SOLVER, with MoCo's published values; SOLVER is the COCO phase's. One schedule each spans all
    # rounds: STEPS and WARMUP_ITERS count the iterations of all MoCo phases together. What belongs to the stage (mixed
    # precision, checkpoints, …) is SOLVER's for both.
    solver = cfg.SOLVER.clone()
    for key in OF_STAGE:
        del solver[key]
    solver.OPTIMIZER = "SGD"
    solver.IMS_PER_BATCH = 256
    solver.BASE_LR = 0.03
    solver.MOMENTUM = 0.9
    solver.WEIGHT_DECAY = 1e-4
    solver.LR_SCHEDULER_NAME = "WarmupCosineLR"
    solver.STEPS = ()
    solver.WARMUP_ITERS = 0
    solver.ACCUMULATE = 1
    cfg.AMT2.MOCO_SOLVER = solver


def _add_semantic_watershed(cfg: CN) -> None:
    cfg.MODEL.UNET = CN()
    # Channels of the decoder's steps, from coarse to fine: as many as the latent's stride has factors 2.
    cfg.MODEL.UNET.CHANNELS = (256, 128, 64, 32, 16)
    # Norm of the decoder, as MODEL.RESNETS.NORM.
    cfg.MODEL.UNET.NORM = "BN"
    # Groups of the decoder's GroupNorm (NORM "GN").
    cfg.MODEL.UNET.GN_GROUPS = 32

    cfg.MODEL.SEMANTIC_WATERSHED = CN()
    keys = cfg.MODEL.SEMANTIC_WATERSHED
    # Where the border class lies: "inner" (in the cell), "outer" (around it, and between cells that touch) or "both".
    keys.BORDER = "inner"
    # Width of the border, pixels of the network's input; "both" is twice as wide.
    keys.BORDER_WIDTH = 2
    # Probabilities, 0 to 1. Connected pixels whose p(cell) is above this start a cell.
    keys.SEED_THRESHOLD = 0.8
    # Pixels whose p(foreground) is below this start the background.
    keys.BACKGROUND_THRESHOLD = 0.2
    # Pixels whose p(foreground) is above this are flooded first.
    keys.RELIEF_THRESHOLD = 0.3
    # Cells whose mean p(foreground) is below this are dropped.
    keys.SCORE_THRESHOLD = 0.6


def _add_clustering(cfg: CN) -> None:
    # The deep-clustering paper's augmentation, in place of all other settings of INPUT on size, crop and flip; clustering
    # always has it.
    cfg.INPUT.CELL_AUGMENTATION = CN()
    cfg.INPUT.CELL_AUGMENTATION.ENABLED = False
    # Side of the random crop, pixels; smaller images are padded with black.
    cfg.INPUT.CELL_AUGMENTATION.SIZE = 256
    # Of each: channels in another order, inversion, quarter turns, horizontal flip, vertical flip.
    cfg.INPUT.CELL_AUGMENTATION.PROB = 0.5
    # Smallest and largest factor of the size, and how often it is not 1.
    cfg.INPUT.CELL_AUGMENTATION.SCALE = (0.5, 2.0)
    cfg.INPUT.CELL_AUGMENTATION.SCALE_PROB = 0.25

    cfg.CLUSTERING = CN()
    # "kmeans" (online), "neural_gas" or "growing_neural_gas", with the paper's numbers.
    cfg.CLUSTERING.ALGORITHM = "neural_gas"
    # k; for growing neural gas the most that it grows to, at least the 5 it starts with.
    cfg.CLUSTERING.CLUSTERS = 500
    # Augmented crops of DATASETS.UNLABELED that are drawn for a clustering.
    cfg.CLUSTERING.SAMPLES = 5000
    # Principal components of the pooled latent that are clustered.
    cfg.CLUSTERING.COMPONENTS = 32
    # Side of the random part of a sample that the encoder trains on, pixels.
    cfg.CLUSTERING.CROP = 128
    # Iterations from one clustering to the next, with new samples; 0 is one clustering for the whole stage, as in the paper.
    cfg.CLUSTERING.PERIOD = 0
    # The encoder's batch norms while it trains on pseudo-labels: "train" normalises by the batch and lets the running
    # statistics follow, "frozen" normalises by the running statistics and leaves them. Other norms know no difference.
    cfg.CLUSTERING.NORM_POLICY = "train"


def _add_evaluation(cfg: CN) -> None:
    # What is measured on DATASETS.TEST: "cell_coco" (AP and AR), "labels" (DSB2018 score, AJI, panoptic quality, F1), and
    # what projects have registered by `register_evaluator`.
    cfg.TEST.EVALUATORS = ("cell_coco",)
    # What tells the best checkpoint where TEST.EVAL_PERIOD is set: a metric of a task on a data set of DATASETS.TEST, "" the
    # first; HIGHER False where lower is better.
    cfg.TEST.BEST = CN()
    cfg.TEST.BEST.DATASET = ""
    cfg.TEST.BEST.TASK = "segm"
    cfg.TEST.BEST.METRIC = "AP"
    cfg.TEST.BEST.HIGHER = True
    # COCO-style evaluation with the changes of LIVECell's authors.
    cfg.TEST.CELL_COCO = CN()
    # Most detections an image that count, for each AR; AP is read at the last.
    cfg.TEST.CELL_COCO.MAX_DETS = (100, 500, 2000)
    # Limits between area ranges, square pixels; two, here 18² and 31², divide small, medium and large.
    cfg.TEST.CELL_COCO.AREA_LIMITS = (324, 961)
    # Whether classes are told apart and the numbers averaged over them; if not, all are one, as COCO's useCats 0.
    cfg.TEST.CELL_COCO.USE_CATS = True
    # Metrics of label images, which know no scores. Detections below this score are left out.
    cfg.TEST.LABELS = CN()
    cfg.TEST.LABELS.SCORE_THRESHOLD = 0.5
    # IoUs at which precision, recall, F1 and accuracy are counted.
    cfg.TEST.LABELS.IOU_THRESHOLDS = (0.5, 0.75, 0.9)
    # Whether an IoU of just such a threshold is a match. The DSB2018 score and panoptic quality have their own rule: no.
    cfg.TEST.LABELS.TIES_MATCH = True
    # Test images drawn with ground truth and predictions after an evaluation.
    cfg.TEST.OVERLAYS = 4
    # After the last stage, thresholds for the model package that give the highest F1 at an IoU of 0.5 on DATASETS.TEST; they
    # change no evaluation. See engine.tuning.
    cfg.TEST.TUNING = CN()
    cfg.TEST.TUNING.ENABLED = True
    # Most images, evenly chosen: it takes one prediction of each.
    cfg.TEST.TUNING.IMAGES = 50
