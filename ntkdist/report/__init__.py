"""The report of a run for a reader: one HTML file that opens anywhere, with nothing to fetch."""

from ntkdist.report.page import check, write

__all__ = ["check", "write"]
