"""Backbones registered with Detectron2."""
