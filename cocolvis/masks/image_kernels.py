"""The compiled loop that turns the annotations of an ordinary image, still in JSON, into the runs of its mask, at once."""

import numpy as np

from cocolvis.compiled import entry
from cocolvis.masks.merge_kernels import merged_runs
from cocolvis.masks.reading_kernels import read_all


@entry()
def runs_of_image(text, bounds, class_ids, longest, height, width):
    """(classes, lengths, ends): the runs that :func:`merged_runs` makes of the spans that :func:`read_all` finds.

    The arguments are theirs; region i is segmentation i, and covers those after it. It has the spans from ends[i] to
    ends[i + 1]; ``ends`` is (n + 1,) int64. There are no runs unless all segmentations were read.
    """
    read, starts, stops, ends = read_all(text, bounds, longest, height, width)
    if not read.all():
        return np.empty(0, np.uint16), np.empty(0, np.uint16), ends
    classes, lengths = merged_runs(starts, stops, ends, class_ids, height, width)
    return classes, lengths, ends
