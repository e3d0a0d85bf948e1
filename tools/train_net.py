#!/usr/bin/env python
"""`cupre-d2 train` from a checkout: trains a pipeline or one stage, with the arguments of Detectron2's."""

from cupre_d2.commands import run

if __name__ == "__main__":
    run("train")
