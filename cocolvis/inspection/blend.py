"""The compiled loop of overlays: a picture under the colours of its mask, and where each class lies."""

from cocolvis.compiled import entry

COUNT, TOP, BOTTOM, LEFT, RIGHT = range(5)
"""The columns of what :func:`blend` finds of a class: its pixels, and the rows and columns of its first and last ones."""


@entry()
def blend(image, mask, colours, inside, outlines, blended, found):
    """Fill ``blended`` (H, W, 3) uint8 with the picture in its mask's colours, and ``found`` (C, 5) int64 with what is where.

    ``image`` (H, W, 3) uint8; ``mask`` (H, W) uint16 below C, 0 = unlabelled; ``colours`` (C, 3) uint8, read-only. The colour v
    of a picture becomes ``inside[colour of the class, v]``, both tables (257, 256) uint8, or ``outlines`` of it where the right
    or the lower neighbour is of another class; row 256 is for unlabelled pixels. ``found`` comes as zeros.
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
            if found[c, COUNT] == 0:
                found[c, TOP], found[c, LEFT] = y, start
            found[c, COUNT] += x - start
            found[c, BOTTOM] = y
            found[c, LEFT] = min(found[c, LEFT], start)
            found[c, RIGHT] = max(found[c, RIGHT], x - 1)
