"""The masks of the published generator (ESSNet) with its defects, so that published checkpoints can be evaluated.

The generator replaces stuff ids by class ids one after another, in place. It can therefore mistake a class id that it has
just assigned for a stuff id and replace it again. It also stores the stuff of an image with exactly one stuff annotation in
8 bits.
"""

from functools import lru_cache

from cocolvis.vocabulary import STUFF_OTHER, UNLABELLED, coco_lvis

MISSING_IMAGE = 429995
"""The image that is missing from the published train list."""

_SHARED_ORDER = (165, 98, 93, 168, 92, 141, 153, 109, 137, 108)


@lru_cache(maxsize=2)
def essnet_lookup(*, eight_bits: bool) -> dict[int, int]:
    """Stuff category id -> class id in the published masks.

    ``eight_bits`` applies to images with exactly one stuff annotation: every class id is then taken modulo 256.
    """
    correct = coco_lvis().lookup("stuff")
    moves = [(old, correct[old]) for old in _SHARED_ORDER]
    moves += [(old, correct[old]) for old in range(92, STUFF_OTHER) if old not in _SHARED_ORDER]
    moves += [(STUFF_OTHER, UNLABELLED), (255, UNLABELLED)]
    published = {}
    for stuff_id in correct:
        value = stuff_id
        for old, new in moves:
            if value == old:
                value = new % 256 if eight_bits else new
        published[stuff_id] = value
    return published
