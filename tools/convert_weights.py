#!/usr/bin/env python
"""`cupre-d2 convert` from a checkout: published weights into a checkpoint with Detectron2's names."""

from cupre_d2.commands import run

if __name__ == "__main__":
    run("convert")
