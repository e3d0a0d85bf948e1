#!/usr/bin/env python
"""`cupre-d2 predict` from a checkout: the cells in images."""

from cupre_d2.commands import run

if __name__ == "__main__":
    run("predict")
