"""A package's network as one file that runs without this plugin: TorchScript (.ts) or torch.export (.pt2)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.export import TracingAdapter
from torch import nn

from cupre_d2.errors import CheckpointError
from cupre_d2.files import write_whole
from cupre_d2.predict.package import Package

Outputs = tuple[torch.Tensor, ...]
# Of the images of a torch.export program, in strides of the network.
LARGEST_SIDE = 512


def export(package: Package, out: str | Path, example: torch.Tensor) -> None:
    """Writes the network, after it has told that it says the same as the package's, of images of two sizes.

    What it maps an image to, 3 x H x W float32 on the scale 0..255, as the package's mapper makes it:

    - watershed: 3 x H x W probabilities of background, cell and border; H and W are multiples of the network's stride. The
      watershed itself is no tensor arithmetic, see `modeling.watershed.segment`.
    - detector: boxes, N x 4 in pixels of that image; classes, N; masks, N x 1 x 28 x 28 probabilities in the boxes; scores,
      N; H and W. Thresholds are the package's. TorchScript alone.

    Args:
        out: its ending says the format.
        example: an image to trace with, 3 x H x W of any type; for a detector one with cells in it.

    Raises:
        CheckpointError: another ending, a network that cannot be written so, with the operator that is to blame, or an
            example without cells.
    """
    path = Path(out)
    writers = {".ts": _script, ".pt2": _program}
    if path.suffix not in writers:
        raise CheckpointError(
            f"{path}: expected an ending of {', '.join(writers)}; ONNX is not written, as nothing here can run it to compare"
        )
    image = example.to(package.cfg.MODEL.DEVICE, torch.float32)
    is_watershed = package.kind == "watershed"
    network = _Probabilities(package.model) if is_watershed else _detections(package.model, image)
    stride = int(package.model.decoder.stride) if is_watershed else 1  # type: ignore[union-attr, arg-type]
    height, width = (side // stride * stride for side in image.shape[1:])
    image = image[:, :height, :width]
    other = torch.cat([image, image.flip(1)], 1).transpose(1, 2).contiguous()
    with torch.no_grad():
        expected = [_run(network, one) for one in (image, other)]
        if not is_watershed and not len(expected[0][0]):
            raise CheckpointError(f"{path}: the detector finds no cell in the example; expected an image with cells")
        partial = path.with_name(f"partial_{path.name}")
        try:
            written = writers[path.suffix](network, image, stride, str(partial))
            found = [_run(written, one) for one in (image, other)]
            content = partial.read_bytes()
        except Exception as error:  # Tracing can fail by almost anything.
            raise CheckpointError(f"{path}: cannot be exported ({_reason(error)})") from error
        finally:
            partial.unlink(missing_ok=True)
    for ours, theirs in zip(expected, found, strict=True):
        if not all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(ours, theirs, strict=True)
        ):
            raise CheckpointError(f"{path}: says something else than the package; it is not written")
    write_whole(path, lambda file: file.write(content))


def _run(network: Callable[[torch.Tensor], Any], image: torch.Tensor) -> Outputs:
    outputs = network(image)
    return outputs if isinstance(outputs, tuple) else (outputs,)


class _Probabilities(nn.Module):
    """A SemanticWatershed without padding and watershed."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = ((image - self.model.pixel_mean) / self.model.pixel_std)[None]
        features = self.model.backbone["bottom_up"](pixels)
        return self.model.predictor(self.model.decoder(pixels, features)).softmax(1)[0]


def _detections(model: nn.Module, image: torch.Tensor) -> nn.Module:
    def inference(model: Any, inputs: list[dict[str, Any]]) -> list[Any]:
        return [model.inference(inputs, do_postprocess=False)[0]]

    return TracingAdapter(model, [{"image": image}], inference)


def _script(network: nn.Module, image: torch.Tensor, stride: int, path: str) -> Callable[[torch.Tensor], Any]:
    # Comparing is done here, with what was loaded again.
    torch.jit.trace(network, image, check_trace=False).save(path)
    return torch.jit.load(path)


def _program(network: nn.Module, image: torch.Tensor, stride: int, path: str) -> Callable[[torch.Tensor], Any]:
    shapes = None
    if not isinstance(network, TracingAdapter):
        height, width = (stride * torch.export.Dim(name, min=1, max=LARGEST_SIDE) for name in ("rows", "columns"))
        shapes = ({1: height, 2: width},)
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=shapes), path)
    return torch.export.load(path).module()


def _reason(error: Exception) -> str:
    """The first line of PyTorch's pages, and the place or operator that it blames."""
    text = str(error)
    first = next((line for line in text.splitlines() if line.strip()), "")[:200]
    blamed = re.search(r"Caused by: \((.*)\)", text) or re.search(r"\b((?:aten|torchvision|torch\.ops)[.:]+\w+)", text)
    return f"{type(error).__name__}: {first}" + (f", in {blamed[1]}" if blamed and blamed[1] not in first else "")
