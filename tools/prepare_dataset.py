#!/usr/bin/env python
"""`cupre-d2 prepare` from a checkout: which public data sets are there, putting archives in their place, subsets."""

from cupre_d2.commands import run

if __name__ == "__main__":
    run("prepare")
