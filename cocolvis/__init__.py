"""The COCO+LVIS masks: what the 1284 classes mean, and how images and masks are built, stored and read.

Every name below is imported from its module on first use, so that ``import cocolvis`` loads neither NumPy nor OpenCV.
Nothing in this package imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cocolvis.building.build import build, join
    from cocolvis.building.coco_lvis import CocoLvisOptions
    from cocolvis.errors import DamagedImage, DataError
    from cocolvis.inspection.export import export_png
    from cocolvis.inspection.render import colourise, overlay
    from cocolvis.inspection.stats import statistics
    from cocolvis.inspection.verify import verify
    from cocolvis.masks.merge import Region, merge
    from cocolvis.masks.rasterize import BadSegmentation, Spans, rasterize
    from cocolvis.sample.writer import write_sample
    from cocolvis.sources.inputs import Sources
    from cocolvis.storage.dataset import Dataset, Split
    from cocolvis.storage.samples import Sample
    from cocolvis.vocabulary import ClassInfo, Vocabulary, coco_lvis

__all__ = [
    "BadSegmentation",
    "ClassInfo",
    "CocoLvisOptions",
    "DamagedImage",
    "DataError",
    "Dataset",
    "Region",
    "Sample",
    "Sources",
    "Spans",
    "Split",
    "Vocabulary",
    "build",
    "coco_lvis",
    "colourise",
    "export_png",
    "join",
    "merge",
    "overlay",
    "rasterize",
    "statistics",
    "verify",
    "write_sample",
]

_MODULES = {
    "BadSegmentation": "cocolvis.masks.rasterize",
    "CocoLvisOptions": "cocolvis.building.coco_lvis",
    "ClassInfo": "cocolvis.vocabulary",
    "DamagedImage": "cocolvis.errors",
    "DataError": "cocolvis.errors",
    "Dataset": "cocolvis.storage.dataset",
    "Region": "cocolvis.masks.merge",
    "Sample": "cocolvis.storage.samples",
    "Sources": "cocolvis.sources.inputs",
    "Spans": "cocolvis.masks.rasterize",
    "Split": "cocolvis.storage.dataset",
    "Vocabulary": "cocolvis.vocabulary",
    "build": "cocolvis.building.build",
    "coco_lvis": "cocolvis.vocabulary",
    "colourise": "cocolvis.inspection.render",
    "export_png": "cocolvis.inspection.export",
    "join": "cocolvis.building.build",
    "merge": "cocolvis.masks.merge",
    "overlay": "cocolvis.inspection.render",
    "rasterize": "cocolvis.masks.rasterize",
    "statistics": "cocolvis.inspection.stats",
    "verify": "cocolvis.inspection.verify",
    "write_sample": "cocolvis.sample.writer",
}
"""The module that defines each name; type checkers read the imports above instead, and report a name that is not there."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
