"""Phases of training and their steps: micro-batches, mixed precision, and leaving out what is not finite."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.solver.build import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from cupre_d2.engine.distributed import parallel
from cupre_d2.errors import TrainingError
from cupre_d2.solver.l2_sp import L2SP

logger = logging.getLogger(__name__)

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
NONFINITE_FILE = "nonfinite.jsonl"

Losses = dict[str, torch.Tensor]


class Phase(Protocol):
    """One kind of training step, all that a StageTrainer knows of it; of one optimizer or, as for GANs, of several.

    Attributes:
        number: tells the random numbers of the stage's phases apart.
    """

    number: int

    def run_step(self, iteration: int, trainer: TrainerBase) -> None:
        """Takes a step and puts into `trainer.storage` what is to be logged."""

    def reset_data_loader(self, builder: Callable[[], Any]) -> None:
        """Replaces the data: the loader is what `builder` returns, None at the end of the stage."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but for the stage's models: optimizers, schedules."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stepper(SimpleTrainer):
    """Detectron2's SimpleTrainer with SOLVER.AMP, SOLVER.ACCUMULATE and SOLVER.NONFINITE_LIMIT.

    The losses of a step are the means over its micro-batches, so that ACCUMULATE changes memory and speed, not what is
    learned, as far as the model's losses are means over images.

    A step whose loss or gradient is not finite is left out: what trains, the optimizer and the buffers stay as they were
    (MoCo's key encoder has followed once more); its losses and the batch's files go to OUTPUT_DIR/nonfinite.jsonl. An
    overflow of float16 alone is the scaler's business, which lowers its scale and goes on, until there is none to lower.

    Args:
        network: takes a list of inputs, returns losses; may be wrapped in DistributedDataParallel.
        cfg: of the phase.
        prefix: see `OptimizerPhase.build`.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, cfg: CfgNode, prefix: str = "") -> None:
        super().__init__(network, None, optimizer)
        self.prefix = prefix
        self._device = torch.device(cfg.MODEL.DEVICE).type
        self._precision = PRECISIONS[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
        self._scaler = torch.amp.GradScaler(self._device, enabled=self._precision is torch.float16)
        self._micro_batches = cfg.SOLVER.ACCUMULATE
        self._limit = cfg.SOLVER.NONFINITE_LIMIT
        self._record = Path(cfg.OUTPUT_DIR) / NONFINITE_FILE
        # Steps left out since the last one that was taken.
        self._left_out = 0

    def run_step(self) -> None:
        """Takes a step with the next batch.

        Raises:
            TrainingError: SOLVER.NONFINITE_LIMIT steps in a row were not finite, or a process of the loader died.
            DatasetError: an image or record cannot be used.
        """
        try:
            self._run_step()
        except RuntimeError as error:
            # The loader's error comes at any time, by the signal that one of its processes has ended.
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"iteration {self.iter}: {' '.join(str(error).split())[:200]} (killed for memory, in most cases); the same "
                "command goes on from the last checkpoint, fewer DATALOADER.NUM_WORKERS need less memory"
            ) from error

    def _run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.optimizer.zero_grad()
        losses = self._backward(batch)
        if self._finite(losses) and self._take():
            self._left_out = 0
            self._write_metrics(losses, data_time, self.prefix)
        else:
            for buffer, before in buffers:
                buffer.copy_(before)
            self._leave_out(losses, batch)

    def _take(self) -> bool:
        """Moves the weights; False where the gradient is not finite and the scaler is not to blame."""
        if not self._scaler.is_enabled():
            self.optimizer.step()
            return True
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= scale or scale > 1

    def _backward(self, batch: list[dict[str, Any]]) -> Losses:
        count = min(self._micro_batches, len(batch))
        bounds = [len(batch) * number // count for number in range(count + 1)]
        parts = [batch[first:end] for first, end in pairwise(bounds)]
        means: Losses = {}
        for number, part in enumerate(parts):
            # Processes exchange gradients once a step.
            with nullcontext() if number == len(parts) - 1 else _no_sync(self.model):
                with torch.autocast(self._device, self._precision, enabled=self._precision is not None):
                    losses = self.model(part)
                share = len(part) / len(batch)
                self._scaler.scale(sum(losses.values()) * share).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.detach() * share
        return means

    def _finite(self, losses: Losses) -> bool:
        finite = torch.stack(list(losses.values())).isfinite().all()
        if not self._scaler.is_enabled():
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            finite = finite & torch.nn.utils.get_total_norm(gradients).isfinite()
        finite = finite.float()
        if comm.get_world_size() > 1:
            # A loss that overflows in one process need not show in the gradient; all have to do the same.
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        return bool(finite)

    def _leave_out(self, losses: Losses, batch: list[dict[str, Any]]) -> None:
        self._left_out += 1
        values = {name: repr(float(loss)) for name, loss in losses.items()}
        files = [inputs.get("file_name", "?") for inputs in batch]
        gathered = comm.gather({"iteration": self.iter, "losses": values, "files": files})
        if comm.is_main_process():
            with self._record.open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in gathered)
        logger.warning(
            f"iteration {self.iter}: a loss or gradient is not finite; the step is left out ({self._left_out} of "
            f"{self._limit} in a row that end training). Losses and the batch's files are in {self._record}"
        )
        if self._left_out >= self._limit:
            raise TrainingError(
                f"iteration {self.iter}: {self._left_out} steps in a row with a loss or gradient that is not finite; their "
                f"losses and files are in {self._record}. The weights are those of before; from them, and in another "
                "OUTPUT_DIR, a lower SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS helps in most cases"
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scaler": self._scaler.state_dict(), "left_out": self._left_out}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._scaler.load_state_dict(state_dict["scaler"])
        self._left_out = state_dict["left_out"]


def _no_sync(network: nn.Module) -> Any:
    for module in network.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
    return nullcontext()


class RegularizedModel(nn.Module):
    """Adds the L2-SP term to a model's losses, as `loss_l2sp`, so that it is logged on its own."""

    def __init__(self, model: nn.Module, l2_sp: L2SP) -> None:
        super().__init__()
        self.model = model
        self.l2_sp = l2_sp

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**self.model(batched_inputs), "loss_l2sp": self.l2_sp.loss()}


@dataclass
class OptimizerPhase:
    """A phase that minimises the losses of one model by one optimizer with its schedule."""

    number: int
    stepper: Stepper
    scheduler: Any

    @classmethod
    def build(
        cls,
        number: int,
        cfg: CfgNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        l2_sp: L2SP | None = None,
        prefix: str = "",
    ) -> "OptimizerPhase":
        """The data are set later, when it is known where training starts (`reset_data_loader`).

        Args:
            prefix: of the names that the sum of the losses and the learning rate are logged under, `total_loss` and `lr`;
                e.g. "coco/" where a stage has several phases.
        """
        network = parallel(model, cfg.MODEL.DEVICE)
        network = RegularizedModel(network, l2_sp) if l2_sp else network
        return cls(number, Stepper(network, optimizer, cfg, prefix), build_lr_scheduler(cfg, optimizer))

    def run_step(self, iteration: int, trainer: TrainerBase) -> None:
        self.stepper.iter = iteration
        self.stepper.run_step()
        learning_rate = self.stepper.optimizer.param_groups[0]["lr"]
        trainer.storage.put_scalar(f"{self.stepper.prefix}lr", learning_rate, smoothing_hint=False)
        self.scheduler.step()

    def reset_data_loader(self, builder: Callable[[], Any]) -> None:
        self.stepper.reset_data_loader(builder)

    def state_dict(self) -> dict[str, Any]:
        return {"stepper": self.stepper.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stepper.load_state_dict(state["stepper"])
        self.scheduler.load_state_dict(state["scheduler"])
