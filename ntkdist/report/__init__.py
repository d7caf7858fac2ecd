"""The report of a run, one HTML file that loads nothing else, and comparisons of jobs."""

from ntkdist.report.page import check, write

__all__ = ["check", "write"]
