#!/usr/bin/env python
"""`cupre-d2 reproduce` from a checkout: a paper's table in one command."""

from cupre_d2.commands import run

if __name__ == "__main__":
    run("reproduce")
