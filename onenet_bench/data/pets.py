"""``pets-full:PATH`` and ``pets-small:PATH``: the Oxford-IIIT Pet data set, as its two archives unpack.

::

    oxford-iiit-pet/
      images/NAME.jpg                      some are PNG or GIF files in truth, three .mat files lie among them
      annotations/trimaps/NAME.png         1 pet, 2 background, 3 border, with a ._ twin of each from macOS
      annotations/{trainval,test}.txt      3680 and 3669 lines of NAME CLASS-ID SPECIES BREED-ID
      annotations/list.txt                 both together, after six lines of comment

Only files that a list names are looked at, and a trimap's value less one is no background index: 2 is the background.

``pets-small``, PET_S of the paper, has the classes of the trimap in its order: pet, background, border.

``pets-full``, PET_F of the paper, has 38: the background, and the 37 breeds by their CLASS-ID, as which the pet's
pixels count. The border, which the publisher calls "not classified", counts nowhere.

Everything else stands in ``_pairs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from onenet_bench.data._official import locate, read_list
from onenet_bench.data._pairs import IGNORED, Pair, PairTree, source
from onenet_bench.errors import DataError

BREEDS = (
    "Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman",
    "Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel", "english_setter",
    "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger", "Maine_Coon",
    "miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll", "Russian_Blue", "saint_bernard",
    "samoyed", "scottish_terrier", "shiba_inu", "Siamese", "Sphynx", "staffordshire_bull_terrier", "wheaten_terrier",
    "yorkshire_terrier",
)  # fmt: skip
"""By CLASS-ID, from 1."""
BELOW = ("oxford-iiit-pet",)
LISTS = ("annotations/trainval.txt", "annotations/test.txt")
PET, BACKGROUND, BORDER = 1, 2, 3  # the values of a trimap

CLASSES = {
    "pets-full": ("background", *BREEDS),
    "pets-small": ("pet", "background", "border"),
}


def find(kind: str, where: str) -> PairTree:
    """The tree that the lists of ``where`` describe; ``kind`` is a key of ``CLASSES``."""
    place = locate(kind, where, knobs=("paper-classes",), below=BELOW, mark=LISTS[0])
    training, test = (_pairs(kind, place.root, place.root / listed) for listed in LISTS)
    return PairTree(
        place=place,
        class_names=CLASSES[kind],
        background=CLASSES[kind].index("background"),
        lists=(place.root / LISTS[0], place.root / LISTS[1]),
        training=training,
        test=test,
    )


def _pairs(kind: str, root: Path, listed: Path) -> tuple[Pair, ...]:
    pairs = []
    for words in read_list(listed):
        name, number = words[0], words[1] if len(words) > 1 else ""
        breed = name.rpartition("_")[0]
        if breed not in BREEDS or number != str(BREEDS.index(breed) + 1):
            raise DataError(
                f"a line names an image of one of {len(BREEDS)} breeds and that breed's CLASS-ID, but {listed} has "
                f"{' '.join(words)!r}; take it from the archive again"
            )
        pairs.append(
            Pair(name, root / f"images/{name}.jpg", root / f"annotations/trimaps/{name}.png", _values(kind, breed))
        )
    return tuple(pairs)


def _values(kind: str, breed: str) -> Mapping[int, int]:
    """The class index of each value of a trimap."""
    if kind == "pets-small":
        return {PET: 0, BACKGROUND: 1, BORDER: 2}
    return {PET: 1 + BREEDS.index(breed), BACKGROUND: 0, BORDER: IGNORED}


FULL = source("pets-full:PATH  Oxford-IIIT Pet, 37 breeds and background", partial(find, "pets-full"))
SMALL = source("pets-small:PATH  Oxford-IIIT Pet, pet, background and border", partial(find, "pets-small"))
