"""Your own data: JSON lines, COCO, indexed masks and Label Studio, opened and checked.

The formats are described in docs/how-to/your-own-data.md, and each in the header of its file.
"""

from self1e.data.own.opening import FORMATS, open_data, recognise
from self1e.data.own.records import OwnData, Problem

__all__ = ["FORMATS", "OwnData", "Problem", "open_data", "recognise"]
