"""What AMT² holds at ResNeSt-200 size: the state, and each phase's peak and activations.

The state is every tensor that is alive after a step of each phase, beside the sum of what there has to be: the detector
once (MoCo's query encoder is its backbone), the keys' copy of the backbone, the anchor weights, a gradient and a
momentum a trained weight of each phase, the queue. Peaks are of processes of their own (VmHWM). Activations are the
bytes that autograd keeps for the backward pass, counted as it asks for them: they are the same on a GPU, but for what
its libraries set aside to work in.
"""

import atexit
import gc
import json
import logging
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks import Figure, measure, read_memory

CONFIG = str(Path(__file__).parents[2] / "configs/stages/amt2.yaml")
# Pixels; of a COCO image at SIZE_TRAIN 800, and of a view.
IMAGE, VIEW = (800, 1216), 224
# Of the peaks, which take a backward pass too.
SMALL_IMAGE, VIEWS, CELLS = 512, 4, 20
RECOMPUTED = "('res2', 'res3', 'res4', 'res5')"
RECOMPUTE = ("MODEL.RESNETS.CHECKPOINT_STAGES", RECOMPUTED)
HALF = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
ACCUMULATE = ("SOLVER.ACCUMULATE", "2", "AMT2.MOCO_SOLVER.ACCUMULATE", "2")
WAYS = {"float32": (), "float32, recomputed": RECOMPUTE, "bfloat16": HALF, "bfloat16, recomputed": (*HALF, *RECOMPUTE)}


def run() -> list[Figure]:
    state = measure("memory", "state()")
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in state["parts"].items())
    figures = [Figure("AMT², state alive / its parts", state["alive"] / sum(state["parts"].values()), f"({parts})", 1.02)]
    for phase in ("moco", "coco"):
        plain, parted = (measure("memory", f"peak({phase!r}, {opts!r})") for opts in ((), ACCUMULATE))
        figures.append(
            Figure(f"{phase} phase, peak with SOLVER.ACCUMULATE 2 / without", parted / plain, f"({_gib(plain)})", 1.0)
        )
    for phase, what in (("moco", f"pair of views of {VIEW} px"), ("coco", f"image of {IMAGE[0]}x{IMAGE[1]} px")):
        for way, opts in WAYS.items():
            size = measure("memory", f"activations({phase!r}, {opts!r})")
            figures.append(Figure(f"{phase} phase, activations a {what}, {way}", size / 2**30, "GiB"))
    return figures


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _trainer(opts: tuple[str, ...], config: str) -> Any:
    from cupre_d2.engine.alternating import AlternatingTrainer
    from cupre_d2.engine.stages import load_stages

    logging.disable()
    records = [{"file_name": str(i), "image_id": i, "height": 9, "width": 9, "annotations": [{}]} for i in range(20)]
    DatasetCatalog.register("memory", lambda: records)
    batch = ("SOLVER.IMS_PER_BATCH", "2", "AMT2.MOCO_SOLVER.IMS_PER_BATCH", str(VIEWS))
    data = ("DATASETS.TRAIN", "('memory',)", "DATASETS.UNLABELED", "('memory',)", "MODEL.DEVICE", "cpu")
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    own = ("MODEL.WEIGHTS", "", "OUTPUT_DIR", folder.name)
    _, (stage,) = load_stages(config, [*batch, *data, *own, *opts])
    return AlternatingTrainer(stage.cfg)


def images(count: int, height: int, width: int) -> list[dict[str, Any]]:
    """Of noise, with CELLS squares."""
    corners = torch.rand(CELLS, 2) * torch.tensor([width - 64, height - 64])
    instances = Instances((height, width), gt_boxes=Boxes(torch.cat([corners, corners + 64], 1)))
    instances.gt_classes = torch.zeros(CELLS, dtype=torch.long)
    masks = torch.zeros(CELLS, height, width, dtype=torch.bool)
    for mask, (x, y) in zip(masks, corners.int().tolist(), strict=True):
        mask[y : y + 64, x : x + 64] = True
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return [{"image": image, "instances": instances, "height": height, "width": width} for _ in range(count)]


def _views(count: int) -> list[dict[str, Any]]:
    image = torch.randint(0, 256, (3, VIEW, VIEW), dtype=torch.uint8)
    return [{"query": image, "key": image} for _ in range(count)]


def _step(trainer: Any, phase: str, batch: list[dict[str, Any]]) -> None:
    stepper = trainer.phases[phase].stepper
    stepper.reset_data_loader(lambda: [batch])
    with EventStorage():
        stepper.run_step()
    stepper.reset_data_loader(lambda: None)


def state(opts: tuple[str, ...] = (), config: str = CONFIG) -> None:
    """Prints the bytes that are alive after a step of each phase, and those of the parts."""
    trainer = _trainer(opts, config)
    for phase, batch in (("moco", _views(2)), ("coco", images(1, 128, 128))):
        _step(trainer, phase, batch)
    del batch
    gc.collect()
    storages: dict[int, int] = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor):
            tensors = (item, item.grad) if item.is_leaf else (item,)
            storages |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    trained = {name: _trained(trainer.phases[name].stepper.optimizer) for name in ("moco", "coco")}
    parts = {
        "detector": _size(trainer.model),
        "projectors": 2 * _size(trainer.moco.projector),
        "keys": _size(trainer.moco.key_encoder),
        "queue": trainer.moco.queue.nbytes,
        "anchor weights": sum(weights.nbytes for weights in trainer.l2_sp.state_dict().values()),
        "gradients": _bytes(trained["moco"] | trained["coco"]),
        "momenta": _bytes(trained["moco"]) + _bytes(trained["coco"]),
    }
    print(json.dumps({"alive": sum(storages.values()), "parts": parts}))


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _trained(optimizer: torch.optim.Optimizer) -> dict[int, nn.Parameter]:
    return {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}


def _bytes(parameters: dict[int, nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters.values())


def peak(phase: str, opts: tuple[str, ...]) -> None:
    """Prints the peak of a step of the phase, everything that the trainer holds included, bytes."""
    before = read_memory("VmRSS")
    trainer = _trainer(opts, CONFIG)
    batch = _views(VIEWS) if phase == "moco" else images(2, SMALL_IMAGE, SMALL_IMAGE)
    for _ in range(2):
        _step(trainer, phase, batch)
    print(read_memory("VmHWM") - before)


def activations(phase: str, opts: tuple[str, ...], config: str = CONFIG) -> None:
    """Prints the bytes kept for the backward pass of one image or pair of views."""
    trainer = _trainer(opts, config)
    # One pair of views leaves batch norms a single value a channel; two are halved.
    model, batch = (trainer.moco, _views(2)) if phase == "moco" else (trainer.model, images(1, *IMAGE))
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = trainer.cfg.SOLVER.AMP.ENABLED
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with EventStorage(), hooks, torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        losses = model(batch)
    print(sum(kept.values()) // (2 if phase == "moco" else 1))
    del losses
