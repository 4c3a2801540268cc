"""Benchmarks by name: ``find_benchmark("refcoco/val")``.

================  ====================================================================================================
file              what
================  ====================================================================================================
``interface``     what a benchmark is
``masks``         pictures with expressions: RefCOCO/+/g, gRefCOCO, ReasonSeg, drawn scenes, clothing, your own data
``classes``       pictures with class maps: ADE20K, Pascal Context and VOC, CamVid
================  ====================================================================================================
"""

from self1e.evaluation.benchmarks.interface import ANSWERS, Answer, Benchmark, Opened, Options

__all__ = ["ANSWERS", "Answer", "Benchmark", "Opened", "Options"]
