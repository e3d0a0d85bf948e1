"""From a record to what a model takes."""

import functools
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import Tensor

from cupre_d2.data.augmentation import TwoViews, cell_augmentations
from cupre_d2.data.catalog import Record
from cupre_d2.data.images import check_percentiles, read_record
from cupre_d2.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)


class TwoViewMapper:
    """Maps a record to two views of its image; annotations, if there are any, are not looked at."""

    @configurable
    def __init__(self, views: TwoViews, image_format: str, percentiles: Sequence[float]) -> None:
        """
        Args:
            views: makes the two views.
            image_format: channel order of the views, as INPUT.FORMAT: "RGB", "BGR" or "L" (grey, three times).
            percentiles: contrast of the images, as INPUT.PERCENTILES; see `read_image`.

        Raises:
            ConfigError: wrong percentiles.
        """
        check_percentiles(percentiles)
        self._views = views
        self._format = image_format
        self._percentiles = percentiles

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads INPUT.VIEWS, INPUT.FORMAT and INPUT.PERCENTILES."""
        views = TwoViews(**{key.lower(): value for key, value in cfg.INPUT.VIEWS.items()})
        return {"views": views, "image_format": cfg.INPUT.FORMAT, "percentiles": cfg.INPUT.PERCENTILES}

    def __call__(self, record: Record) -> Record:
        """Returns "query" and "key", uint8 tensors 3 x SIZE x SIZE, and the record's "file_name" and "image_id".

        Raises:
            DatasetError: the image cannot be read; see `read_image`.
        """
        # Hue and the weights of grey are defined for RGB, so BGR is made only afterwards.
        bgr = self._format == "BGR"
        image = read_record(record, "RGB" if bgr else self._format, self._percentiles)
        query, key = self._views(_to_tensor(image))
        if bgr:
            query, key = query.flip(0), key.flip(0)
        return {"query": query, "key": key, "file_name": record["file_name"], "image_id": record["image_id"]}


class DetectionMapper(DatasetMapper):
    """Detectron2's mapper, with its augmentations, on images read by `read_record`, and errors that say what is wrong.

    Other than Detectron2's it takes images without an instance under INPUT.CROP too, and no semantic segmentation.
    """

    @configurable
    def __init__(self, is_train: bool, percentiles: Sequence[float], **options: Any) -> None:
        """
        Args:
            is_train: as of Detectron2's mapper.
            percentiles: contrast of the images, as INPUT.PERCENTILES; see `read_image`.
            options: the others of Detectron2's mapper.

        Raises:
            ConfigError: wrong percentiles.
        """
        check_percentiles(percentiles)
        super().__init__(is_train, **options)
        self.percentiles = percentiles

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Reads INPUT.PERCENTILES, INPUT.CELL_AUGMENTATION, and what Detectron2's mapper reads."""
        options = {**super().from_config(cfg, is_train), "percentiles": cfg.INPUT.PERCENTILES}
        if is_train and cfg.INPUT.CELL_AUGMENTATION.ENABLED:
            options |= {"augmentations": cell_augmentations(cfg), "recompute_boxes": cfg.MODEL.MASK_ON}
        return options

    def __call__(self, dataset_dict: Record) -> Record:
        """Returns the record with "image", a uint8 tensor 3xHxW, and in training "instances" in place of "annotations".

        Instances may be empty; "gt_masks" is there all the same. Crowds are left out, as in Detectron2.

        Raises:
            DatasetError: the image cannot be read, has another size than the record says, or an annotation has no mask
                though MODEL.MASK_ON.
            ConfigError: a mask is an RLE though INPUT.MASK_FORMAT is "polygon".
        """
        record = dict(dataset_dict)
        image = read_record(record, self.image_format, self.percentiles)
        try:
            utils.check_image_size(record, image)
        except utils.SizeMismatchError as error:
            raise DatasetError(
                f"{record['file_name']}: image of {image.shape[1]}x{image.shape[0]} pixels; "
                f"expected the record's width and height, {record.get('width')}x{record.get('height')}"
            ) from error
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image_shape = augmented.image.shape[:2]
        record["image"] = _to_tensor(augmented.image)
        if self.proposal_topk is not None:
            utils.transform_proposals(record, image_shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            record["annotations"] = [_copy_annotation(annotation) for annotation in record["annotations"]]
            self._transform_annotations(record, transforms, image_shape)
        return record

    def _transform_annotations(self, dataset_dict: Record, transforms: T.TransformList, image_shape: tuple) -> None:
        instances = [annotation for annotation in dataset_dict["annotations"] if not annotation.get("iscrowd", 0)]
        if not instances:
            del dataset_dict["annotations"]
            dataset_dict["instances"] = self._no_instances(image_shape)
            return
        if self.use_instance_mask:
            self._check_masks(dataset_dict, instances)
        super()._transform_annotations(dataset_dict, transforms, image_shape)

    def _check_masks(self, record: Record, instances: list[Record]) -> None:
        for index, annotation in enumerate(instances):
            if "segmentation" not in annotation:
                raise DatasetError(
                    f"{record['file_name']}: annotation {index}, field segmentation: missing; "
                    "expected a mask, as MODEL.MASK_ON is True"
                )
            if self.instance_mask_format == "polygon" and isinstance(annotation["segmentation"], dict):
                raise ConfigError(
                    f"INPUT.MASK_FORMAT polygon: annotation {index} of {record['file_name']} is an RLE mask; "
                    "expected INPUT.MASK_FORMAT bitmask"
                )

    def _no_instances(self, image_shape: tuple) -> Instances:
        """What Detectron2 makes of no annotation lacks gt_masks, and its mapper fails on that when it crops."""
        instances = Instances(image_shape, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
        if self.use_instance_mask:
            polygons = self.instance_mask_format == "polygon"
            instances.gt_masks = PolygonMasks([]) if polygons else BitMasks(torch.zeros(0, *image_shape))
        return instances


def _copy_annotation(annotation: Record) -> Record:
    """What Detectron2 changes in place: the fields, and polygons that are arrays; an RLE it leaves alone."""
    copied = dict(annotation)
    if isinstance(copied.get("segmentation"), list):
        copied["segmentation"] = [np.array(polygon, np.float64) for polygon in copied["segmentation"]]
    return copied


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def warn_of_deep_images() -> None:
    """Has Detectron2's `read_image` say once that an image has more than 8 bits; what it reads is the same.

    Its DatasetMapper makes 16-bit images black or white and cuts deep colours off without a word: a good model then finds
    nothing (AP 0.0 for 43.9). It is wrapped and not replaced, as other projects in the same program may count on what it
    reads; nothing of this plugin calls it.
    """
    read = utils.read_image

    @functools.wraps(read)
    def warning_once(file_name: str, format: str | None = None) -> np.ndarray:
        if utils.read_image is warning_once:
            # What cannot be opened is the reader's to report.
            with suppress(OSError), PathManager.open(file_name, "rb") as file, Image.open(file) as image:
                # Whole numbers and floats of 32 bits have modes of their own, 16-bit colours only a way to be decoded.
                if image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile):
                    # Files need not be opened twice any longer.
                    utils.read_image = read
                    logger.warning(
                        f"{file_name}: has more than 8 bits; Detectron2's reader makes such images black or white. Use "
                        "cupre_d2.data.mappers.DetectionMapper, or cupre_d2.data.images.read_image. Said once"
                    )
        return read(file_name, format)

    utils.read_image = warning_once
