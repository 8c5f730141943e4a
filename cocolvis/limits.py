"""Upper limits on the sizes of masks and pictures; larger input is refused everywhere."""

MAX_PIXELS = 2**27
"""The most pixels that a mask may have; more would exhaust memory."""

MAX_PICTURE = 2**28
"""The most bytes that the file of a picture may have; more would exhaust memory."""
