"""The compiled loop of overlays: blends a picture with the colours of its mask, and measures each class."""

from cocolvis.compiled import entry

COUNT, TOP, BOTTOM, LEFT, RIGHT = range(5)
"""The columns of ``extents`` in :func:`blend`: the pixels of a class, and its first and last row and column."""


@entry()
def blend(image, mask, colours, inside, outlines, blended, extents):
    """Fill ``blended`` (H, W, 3) uint8 with the overlay, and ``extents`` (C, 5) int64, all zeros, with that of each class.

    ``image`` (H, W, 3) uint8; ``mask`` (H, W) uint16 below C, 0 = unlabelled; ``colours`` (C, 3) uint8, read-only. A channel of
    value v becomes ``table[k, v]``, where k is the same channel of the class's colour, or 256 for unlabelled pixels. The table
    is ``outlines`` if the right or the lower neighbour has another class, otherwise ``inside``; both are (257, 256) uint8.
    """
    height, width = mask.shape
    for y in range(height):
        x = 0
        while x < width:
            c, start = mask[y, x], x
            while x < width and mask[y, x] == c:
                last = x + 1 < width and mask[y, x + 1] != c
                table = outlines if last or (y + 1 < height and mask[y + 1, x] != c) else inside
                for channel in range(3):
                    blended[y, x, channel] = table[colours[c, channel] if c else 256, image[y, x, channel]]
                x += 1
            if extents[c, COUNT] == 0:
                extents[c, TOP], extents[c, LEFT] = y, start
            extents[c, COUNT] += x - start
            extents[c, BOTTOM] = y
            extents[c, LEFT] = min(extents[c, LEFT], start)
            extents[c, RIGHT] = max(extents[c, RIGHT], x - 1)
