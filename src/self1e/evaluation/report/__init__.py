"""A report of a run for people: ``report.html``, one file that opens anywhere, and ``report.md``.

Both are functions of the folder of rows, plus the benchmark's own data, from which pictures and truths are read again.
Predicted masks come from the rows (``self1e eval --report`` keeps them as COCO RLE); without them pictures and truths
are shown alone.
"""

from self1e.evaluation.report.writing import write_report

__all__ = ["write_report"]
