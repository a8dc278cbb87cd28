"""Tables 1 and 3 of the OneNet paper (arXiv 2411.09838): the accuracies as it prints them, and how it was trained."""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "arXiv 2411.09838"


class Quantity(NamedTuple):
    """A column of the published tables, and which of ours stands beside it."""

    title: str
    score: str  # a key of SCORES
    of_volumes: str  # the same for data in which images are slices of a patient's volume


QUANTITIES: dict[str, Quantity] = {
    "ce": Quantity("L_CE", "ce_weighted", "ce_weighted"),
    "map50": Quantity("mAP_0.5", "map50", "map50"),
    "miou": Quantity("mIoU", "miou", "miou"),
    "dsc": Quantity("DSC", "dice", "dice_case_fg"),
}


class DataSet(NamedTuple):
    """A data set of the paper: its name there, what it is, and how many outputs the paper's configuration has."""

    label: str
    title: str
    classes: int
    volumes: bool = False


DATA: dict[str, DataSet] = {
    "voc": DataSet("VOC", "PASCAL VOC 2012", 21),
    "pets-full": DataSet("PET_F", "Oxford-IIIT Pet, breeds", 38),
    "pets-small": DataSet("PET_S", "Oxford-IIIT Pet, trimaps", 3),
    "msd-heart": DataSet("Heart", "Medical Segmentation Decathlon, Task02", 4, volumes=True),
    "msd-brain": DataSet("Brain", "Medical Segmentation Decathlon, Task01", 4, volumes=True),
    "msd-lung": DataSet("Lung", "Medical Segmentation Decathlon, Task06", 2, volumes=True),
}
"""By the name that opens them."""
CHANNELS = 3  # of every input in the paper
RESOLUTION, MASKS = 512, 256
BATCHES = (32, 64)
WIDTH = 64  # channels of the paper's first level


class Published(NamedTuple):
    """A row as it is printed. ``pretrained``: its encoder starts from ImageNet weights."""

    label: str
    figures: tuple[str, ...]  # by data set: its quantities, parted by spaces
    pretrained: bool = False


class PublishedTable(NamedTuple):
    """A table as it is printed."""

    title: str
    quantities: tuple[str, ...]
    data: tuple[str, ...]
    rows: dict[str, Published]

    def figures(self, method: str, data: str) -> dict[str, str]:
        """What is printed for a method on a data set, by quantity."""
        cell = self.rows[method].figures[self.data.index(data)]
        return dict(zip(self.quantities, cell.split(), strict=True))


TABLES: dict[str, PublishedTable] = {
    "table1": PublishedTable(
        title="Table 1",
        quantities=("ce", "map50", "miou"),
        data=("voc", "pets-full", "pets-small", "msd-heart", "msd-brain", "msd-lung"),
        rows={
            "unet_4": Published("U-Net_4", (
                "1.985 .0541 .182", "2.206 .0329 .316", ".243 .7717 .713",
                ".0223 .4305 .063", ".0455 .2450 .001", ".0010 .5542 .009",
            )),
            "resnet34_unet": Published("ResNet_34", (
                "1.321 .0806 .332", ".648 .0503 .597", ".179 .9098 .801",
                ".0087 .4375 .065", ".1305 .4188 .079", ".0010 .5529 .009",
            ), pretrained=True),
            "resnet50_unet": Published("ResNet_50", (
                "1.079 .0921 .372", "1.027 .0512 .599", ".189 .9303 .815",
                ".0086 .4368 .065", ".0496 .5419 .010", ".0007 .5566 .009",
            ), pretrained=True),
            "mobilenet_unet": Published("MobileNet", (
                "2.007 .0480 .166", "2.386 .0329 .252", ".262 .6091 .664",
                ".0288 .3265 .047", ".0351 .5764 .011", ".0010 .5787 .008",
            ), pretrained=True),
            "onenet_e_4": Published("OneNet_e,4", (
                "2.144 .0485 .160", "2.713 .0279 .216", ".309 .5176 .636",
                ".0041 .4396 .066", ".0363 .5789 .105", ".0007 .5531 .009",
            )),
            "onenet_ed_4": Published("OneNet_e,d,4", (
                "2.553 .0363 .149", "3.080 .0227 .172", ".437 .2179 .535",
                ".0076 .4187 .062", ".0455 .5415 .099", ".0009 .5510 .008",
            )),
        },
    ),
    "table3": PublishedTable(
        title="Table 3",
        quantities=("ce", "map50", "miou", "dsc"),
        data=("pets-small", "msd-heart", "msd-lung"),
        rows={
            "onenet_e_4_s": Published("OneNet_e,4-S", (
                ".320 .5275 .632 .963", ".0034 .4383 .065 .699", ".0006 .5510 .008 .115",
            )),
            "onenet_e_4_c": Published("OneNet_e,4-C", (
                ".309 .5176 .636 .967", ".0363 .4386 .066 .605", ".0007 .5531 .009 .115",
            )),
            "onenet_ed_4_s": Published("OneNet_ed,4-S", (
                ".416 .2253 .529 .868", ".0125 .3938 .059 .544", ".0007 .5512 .008 .112",
            )),
            "onenet_ed_4_c": Published("OneNet_ed,4-C", (
                ".437 .2179 .535 .842", ".0076 .4187 .062 .605", ".0007 .5510 .008 .111",
            )),
        },
    ),
}  # fmt: skip
"""By the name of the command. S is with the spatial convolution, C without."""
