"""Meta-architectures registered with Detectron2."""
