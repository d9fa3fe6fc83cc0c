"""What a run found, for people: the table in the terminal, the page, and comparisons, all from ``results.json``."""

from curlora_lab.report.compare import Comparison, compare, find_runs, write_comparison
from curlora_lab.report.html import render_report, write_report
from curlora_lab.report.record import RecordError, read_record, schema, validate_record
from curlora_lab.report.table import render_table, stage_line

__all__ = [
    "Comparison",
    "RecordError",
    "compare",
    "find_runs",
    "read_record",
    "render_report",
    "render_table",
    "schema",
    "stage_line",
    "validate_record",
    "write_comparison",
    "write_report",
]
