"""Metrics of every benchmark; one file per family, the rules and their sources in the file.

========================  ==========================================================================================
file                      what
========================  ==========================================================================================
``masks``                 cIoU, gIoU, Pr@t, box accuracy: RefCOCO/+/g, ReasonSeg
``generalized``           gRefCOCO: masks, and whether the thing is there at all
``semantic``              mIoU over classes, from one logit map per class
``concepts``              cgF1: instances, and whether the concept is there at all
``vqa``                   soft accuracy over ten answers, and exact match
``yes_no``                POPE and MME
``choices``               MMBench
``rows``                  what they have in common: ``update``, ``merge``, ``result``
========================  ==========================================================================================
"""

from self1e.evaluation.metrics.masks import MaskIoU, box_iou, intersection_union, iou, mask_box, mask_row, split_truth
from self1e.evaluation.metrics.rows import Metric, Ratio, Row

__all__ = [
    "MaskIoU",
    "Metric",
    "Ratio",
    "Row",
    "box_iou",
    "intersection_union",
    "iou",
    "mask_box",
    "mask_row",
    "split_truth",
]
