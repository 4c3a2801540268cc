"""Questions that models are measured on: readers of the official files, one file per family.

======================  ================================================================
file                    what
======================  ================================================================
``asked``               what every reader yields, and where folders are looked for
``open_answers``        VQAv2, OK-VQA, TextVQA, VizWiz, GQA
``yes_no``              POPE, MME
``options``             MMBench
``drawn``               questions about drawn scenes
======================  ================================================================

The training files of the same sets are read by ``self1e.data.vqa``.
"""

from self1e.data.vqa_benchmarks.asked import Asked

__all__ = ["Asked"]
