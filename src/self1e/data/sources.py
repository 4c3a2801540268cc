"""The public data sets: where each comes from, under which licence, and what it should hold.

Nothing is downloaded, and no address of a file is given: pages stay, files move. Folders are those of the published
training layout. A count is given only where it is published by the authors of the data; ``None`` is unknown. The same
holds for licences: "unknown" means that we found none, not that there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["files", "records", "file"]


@dataclass(frozen=True)
class Archive:
    """A file that the page offers."""

    name: str
    into: str
    """Folder under the root that it is unpacked to."""
    strip: str = ""
    """Leading folder that is left out."""


@dataclass(frozen=True)
class Expected:
    """What has to be there in the end."""

    path: str
    """A folder for ``files``, otherwise a file; under the root, or beside it if it begins with ``data/``."""
    unit: Unit = "file"
    count: int | None = None
    suffix: str = ""
    """Of the files that are counted."""
    key: str = ""
    """Of the list that is counted in a JSON object; empty if the file is a list itself, or has an entry per line."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One public data set."""

    name: str
    title: str
    page: str
    """The official page."""
    licence: str
    expected: tuple[Expected, ...]
    archives: tuple[Archive, ...] = ()
    needs: tuple[str, ...] = ()
    """Other sets whose pictures it uses."""
    note: str = ""


_COCO_LICENCE = "annotations CC BY 4.0; photographs under the terms of Flickr, one licence each"
_REFER = "https://github.com/lichengunc/refer"
_REFER_NOTE = "The page's own links are dead at times; its issues name mirrors. Compare the counts."
_LINES = (
    "The lines are made from the official files, with one answer per question. data/ lies beside ROOT, as published."
)
_TRAIN2014 = "refer_seg/images/mscoco/images"


def _refer(name: str, title: str, refs: str, images: int | None) -> Source:
    """Describe one of the data sets of the refer repository."""
    folder = f"refer_seg/{name}"
    return Source(
        name=name,
        title=title,
        page=_REFER,
        licence="unknown for the expressions; pictures as COCO 2014",
        archives=(Archive(f"{name}.zip", "refer_seg"),),
        expected=(
            Expected(f"{folder}/{refs}"),
            Expected(f"{folder}/instances.json", "records", images, key="images"),
        ),
        needs=("coco2014",),
        note=_REFER_NOTE,
    )


def _vqa(name: str, title: str, page: str, licence: str, lines: str, count: int) -> Source:
    """Describe a set of questions whose answer is text."""
    expected = (Expected(f"data/{lines}", "records", count),)
    return Source(name=name, title=title, page=page, licence=licence, expected=expected, note=_LINES)


_ALL = (
    Source(
        name="coco2017",
        title="COCO 2017 pictures",
        page="https://cocodataset.org/#download",
        licence=_COCO_LICENCE,
        archives=(Archive("train2017.zip", "coco"), Archive("val2017.zip", "coco")),
        expected=(
            Expected("coco/train2017", "files", 118_287, ".jpg"),
            Expected("coco/val2017", "files", 5_000, ".jpg"),
        ),
    ),
    Source(
        name="coco2014",
        title="COCO 2014 training pictures, of the referring sets",
        page="https://cocodataset.org/#download",
        licence=_COCO_LICENCE,
        archives=(Archive("train2014.zip", _TRAIN2014),),
        expected=(Expected(f"{_TRAIN2014}/train2014", "files", 82_783, ".jpg"),),
    ),
    Source(
        name="ade20k",
        title="ADE20K, the scene parsing benchmark with 150 classes",
        page="http://sceneparsing.csail.mit.edu",
        licence="pictures for non-commercial research and education; annotations BSD-3-Clause",
        archives=(Archive("ADEChallengeData2016.zip", "ade20k", "ADEChallengeData2016"),),
        expected=(
            Expected("ade20k/images/training", "files", 20_210, ".jpg"),
            Expected("ade20k/annotations/training", "files", 20_210, ".png"),
            Expected("ade20k/images/validation", "files", 2_000, ".jpg"),
            Expected("ade20k/annotations/validation", "files", 2_000, ".png"),
        ),
    ),
    Source(
        name="cocostuff",
        title="COCO-Stuff, maps of things and stuff",
        page="https://github.com/nightrome/cocostuff",
        licence="annotations CC BY 4.0; pictures as COCO 2017",
        archives=(Archive("stuffthingmaps_trainval2017.zip", "cocostuff"),),
        expected=(
            Expected("cocostuff/train2017", "files", 118_287, ".png"),
            Expected("cocostuff/val2017", "files", 5_000, ".png"),
        ),
        needs=("coco2017",),
    ),
    Source(
        name="paco_lvis",
        title="PACO-LVIS, parts and attributes of common objects",
        page="https://github.com/facebookresearch/paco",
        licence="unknown for the annotations; pictures as COCO 2017",
        archives=(Archive("paco_lvis_v1.zip", "vlpart/paco/annotations"),),
        expected=(Expected("vlpart/paco/annotations/paco_lvis_v1_train.json", "records", None, key="images"),),
        needs=("coco2017",),
    ),
    Source(
        name="pascal_part",
        title="PASCAL-Part, in the form that VLPart made of it, with the pictures of PASCAL VOC 2010",
        page="https://github.com/facebookresearch/VLPart/tree/main/datasets",
        licence="unknown for the parts; photographs under the terms of Flickr",
        archives=(Archive("VOCtrainval_03-May-2010.tar", "vlpart/pascal_part"),),
        expected=(
            Expected("vlpart/pascal_part/train.json", "records", None, key="images"),
            Expected("vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages", "files", None, ".jpg"),
        ),
        note="About 4,000 pictures have parts. The pictures are on http://host.robots.ox.ac.uk/pascal/VOC/voc2010/.",
    ),
    _refer("refcoco", "RefCOCO", "refs(unc).p", 19_994),
    _refer("refcoco+", "RefCOCO+", "refs(unc).p", 19_992),
    _refer("refcocog", "RefCOCOg, the partition of UMD", "refs(umd).p", 25_799),
    Source(
        name="refclef",
        title="RefCLEF (ReferIt), on the pictures of SAIAPR TC-12",
        page=_REFER,
        licence="unknown",
        archives=(Archive("refclef.zip", "refer_seg"), Archive("saiapr_tc-12.zip", "refer_seg/images")),
        expected=(
            Expected("refer_seg/refclef/refs(unc).p"),
            Expected("refer_seg/refclef/instances.json", "records", None, key="images"),
            Expected("refer_seg/images/saiapr_tc-12", "files", None, ".jpg"),
        ),
        note=_REFER_NOTE,
    ),
    Source(
        name="grefcoco",
        title="gRefCOCO, expressions of any number of objects, none included",
        page="https://github.com/henghuiding/gRefCOCO",
        licence="unknown for the expressions; pictures as COCO 2014",
        expected=(
            Expected("refer_seg/grefcoco/grefs(unc).json", "records"),
            Expected("refer_seg/grefcoco/instances.json", "records", None, key="images"),
        ),
        needs=("coco2014",),
    ),
    Source(
        name="reasonseg",
        title="ReasonSeg, questions whose answer is a region",
        page="https://github.com/dvlab-research/LISA",
        licence="non-commercial research; see the page",
        expected=tuple(
            Expected(f"reason_seg/ReasonSeg/{split}", "files", count, suffix)
            for split, count in (("train", 239), ("val", 200), ("test", 779))
            for suffix in (".jpg", ".json")
        ),
        note="Put the unpacked folders train, val and test there.",
    ),
    Source(
        name="llava_instruct_150k",
        title="LLaVA-Instruct-150K, conversations about COCO's pictures",
        page="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        licence="CC BY 4.0, before 2024 CC BY-NC 4.0; subject to OpenAI's terms of use",
        expected=(Expected("llava_dataset/llava_instruct_150k.json", "records"),),
        needs=("coco2017",),
    ),
    _vqa(
        "vqav2",
        "VQA v2",
        "https://visualqa.org/download.html",
        "annotations CC BY 4.0; pictures as COCO 2014",
        "vqav2/vqav2_train.jsonl",
        443_757,
    ),
    _vqa(
        "okvqa",
        "OK-VQA",
        "https://okvqa.allenai.org/download.html",
        "unknown for the questions; pictures as COCO 2014",
        "okvqa/okvqa_train.jsonl",
        9_009,
    ),
    _vqa(
        "textvqa",
        "TextVQA",
        "https://textvqa.org/dataset/",
        "annotations CC BY 4.0; pictures of OpenImages, one licence each",
        "textvqa/textvqa_train.jsonl",
        34_602,
    ),
    _vqa(
        "vizwiz",
        "VizWiz-VQA",
        "https://vizwiz.org/tasks-and-datasets/vqa/",
        "CC BY 4.0",
        "vizwiz/vizwiz_train.jsonl",
        20_523,
    ),
    _vqa(
        "gqa",
        "GQA, balanced training questions",
        "https://cs.stanford.edu/people/dorarad/gqa/download.html",
        "unknown",
        "gqa/train_balanced.jsonl",
        943_000,
    ),
)

SOURCES = {source.name: source for source in _ALL}
"""Every public data set that training or evaluation knows, by the name that `self1e data prepare` takes."""
