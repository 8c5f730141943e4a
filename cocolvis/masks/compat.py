"""The masks of the published generator (ESSNet), its defects included, so that published checkpoints can be evaluated.

The generator moves stuff ids to class ids one after another in place, so that an id which was just assigned may be taken for a
stuff id and moved again; and it keeps an image's stuff in 8 bits when there is exactly one stuff annotation.
"""

from functools import lru_cache

from cocolvis.vocabulary import STUFF_OTHER, UNLABELLED, coco_lvis

MISSING_IMAGE = 429995
"""The image that the published train list lacks."""

_SHARED_ORDER = (165, 98, 93, 168, 92, 141, 153, 109, 137, 108)


@lru_cache(maxsize=2)
def essnet_lookup(*, eight_bits: bool) -> dict[int, int]:
    """Stuff category id -> class id in the published masks.

    ``eight_bits`` for an image with exactly one stuff annotation: every assigned id is then taken modulo 256.
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
