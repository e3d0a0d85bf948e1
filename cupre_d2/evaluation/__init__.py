"""COCO-style evaluation and pictures of predictions."""
