"""``voc:PATH``: the segmentation part of PASCAL VOC 2012, as its archive unpacks.

::

    VOCdevkit/VOC2012/
      JPEGImages/ID.jpg
      SegmentationClass/ID.png                 palette index 0 to 20, 255 along the outlines: counts nowhere
      ImageSets/Segmentation/{train,val}.txt   1464 and 1449 IDs

The publisher's test images have no public masks; ``val.txt``, on which results are published, is the test split.
Everything else stands in ``_pairs``.
"""

from __future__ import annotations

from onenet_bench.data._official import locate, read_list
from onenet_bench.data._pairs import IGNORED, Pair, PairTree, source

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BELOW = ("VOCdevkit", "VOC2012")
LISTS = ("ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt")

_INDICES = {**{index: index for index in range(len(CLASSES))}, IGNORED: IGNORED}


def find(where: str) -> PairTree:
    """The tree that the lists of ``where`` describe."""
    place = locate("voc", where, knobs=("paper-classes",), below=BELOW, mark=LISTS[0])
    root = place.root
    training, test = (
        tuple(
            Pair(name, root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png", _INDICES)
            for name, *_ in read_list(root / listed)
        )
        for listed in LISTS
    )
    return PairTree(
        place=place,
        class_names=CLASSES,
        background=0,
        lists=(root / LISTS[0], root / LISTS[1]),
        training=training,
        test=test,
    )


SOURCE = source("voc:PATH  PASCAL VOC 2012, 21 classes", find)
