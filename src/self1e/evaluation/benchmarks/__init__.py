"""Benchmarks by name: ``find_benchmark("refcoco/val")``.

==================  ====================================================================================================
file                what
==================  ====================================================================================================
``interface``       what a benchmark is
``masks``           pictures with expressions: RefCOCO/+/g, gRefCOCO, ReasonSeg, drawn scenes, clothing
``own``             your own data, in any of its formats
``classes``         pictures with class maps: ADE20K, Pascal VOC, CamVid; read by ``class_maps``
``pascal_context``  the many places where Pascal Context lies
``vqa``             pictures with questions: VQAv2, OK-VQA, TextVQA, VizWiz, GQA, POPE, MME, MMBench, drawn scenes
``registry``        all of them by name
==================  ====================================================================================================
"""

from self1e.evaluation.benchmarks.interface import ANSWERS, Answer, Benchmark, Opened, Options
from self1e.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark

__all__ = ["ANSWERS", "BENCHMARKS", "Answer", "Benchmark", "Opened", "Options", "find_benchmark"]
