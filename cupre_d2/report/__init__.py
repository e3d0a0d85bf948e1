"""report.html: what a finished pipeline was worth, for people, in one file."""

from cupre_d2.report.render import REPORT, write_report

__all__ = ["REPORT", "write_report"]
