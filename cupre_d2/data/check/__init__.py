"""What is wrong with a data set, and a cleaned copy of it."""

from cupre_d2.data.check.checks import check_sources
from cupre_d2.data.check.cleaning import fix
from cupre_d2.data.check.command import check
from cupre_d2.data.check.findings import KINDS, Finding, exit_code, report, results, results_table
from cupre_d2.data.check.sources import Source, sources_of, sources_of_name, sources_of_path

__all__ = [
    "KINDS",
    "Finding",
    "Source",
    "check",
    "check_sources",
    "exit_code",
    "fix",
    "report",
    "results",
    "results_table",
    "sources_of",
    "sources_of_name",
    "sources_of_path",
]
