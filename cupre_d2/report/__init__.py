"""report.html: what a finished pipeline was worth, for people, in one file of registered sections."""

from cupre_d2.report.figures import svg
from cupre_d2.report.sections import REPORT, PipelineResults, StageResults, register_section, write_report

__all__ = ["REPORT", "PipelineResults", "StageResults", "register_section", "svg", "write_report"]
