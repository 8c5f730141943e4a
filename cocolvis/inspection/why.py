"""Explains the class of a pixel: the annotations that cover it, from the visible one down to the lowest hidden one."""

from dataclasses import asdict, dataclass

from cocolvis.building.coco_lvis import AnnotatedImage, CocoLvisOptions, CocoLvisPlan, regions
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.masks.merge import Region, stacked
from cocolvis.masks.rasterize import Spans
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.vocabulary import UNLABELLED, coco_lvis


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One annotation that covers the pixel.

    ``area`` is the number of its pixels in the whole image, ``shows`` whether it is the topmost annotation. ``annotation_id``
    is None if the record has no id.
    """

    source: str
    annotation_id: int | None
    category_id: int
    category: str
    class_id: int
    class_name: str
    area: int
    shows: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A pixel of an image of ``height`` x ``width``: its ``layers`` from top to bottom, and the class that the mask stores.

    ``instances`` is the recorded number of LVIS annotations of this class in the image; None for unlabelled pixels, and if the
    data set does not record instances. ``left_out`` lists the annotations of the image that builds leave out, with the reason.
    """

    split: str
    image_id: int
    path: str
    height: int
    width: int
    x: int
    y: int
    stored: int
    instances: int | None
    layers: list[Layer]
    left_out: list[Fault]

    @property
    def derived(self) -> int:
        """The class that the annotations give the pixel; 0 if none covers it."""
        return self.layers[0].class_id if self.layers else UNLABELLED

    @property
    def stored_name(self) -> str:
        """The name of the class that the mask stores."""
        return coco_lvis().name(self.stored)

    @property
    def fault(self) -> str | None:
        """One line if mask and annotations disagree, otherwise None."""
        if self.stored == self.derived:
            return None
        derived = f"{self.derived} {coco_lvis().name(self.derived)}"
        found = f"the mask has class {self.stored} {self.stored_name}, but the annotations give {derived}"
        return f"image {self.image_id}, x {self.x}, y {self.y}: {found}; `cocolvis verify` checks the data set"

    def to_json(self) -> dict:
        """Everything, as ``cocolvis why --json`` prints it."""
        computed = {"stored_name": self.stored_name, "derived": self.derived, "fault": self.fault}
        return asdict(self) | computed | {"left_out": [fault._asdict() for fault in self.left_out]}


def why(dataset: Dataset, sources: Sources, place: tuple[Split, int], x: int, y: int) -> Explanation:
    """Explain the pixel in column ``x`` and row ``y``, counted from 0 at the top left, of the image at a ``place``.

    The place is a split of the data set and the image's number in it, as :meth:`Dataset.locate` returns them. Only the shard of
    the image is opened. Reads the LVIS file of the split and the stuff file of the image's folder. Raises DataError if the
    pixel is outside the image, or if the data set was built with another vocabulary or other annotation files.
    """
    if not dataset.is_coco_lvis:
        raise DataError(f"{dataset.folder}: does not have the vocabulary of COCO+LVIS; only COCO+LVIS masks can be explained")
    split, row = place
    sample = split.stored(row)
    image_id, mask = sample.image_id, sample.mask
    height, width = mask.shape
    if not (0 <= x < width and 0 <= y < height):
        raise DataError(f"image {image_id} has no pixel x {x}, y {y}: x is 0..{width - 1}, y is 0..{height - 1}")
    image, options, left_out = _task(dataset, sources, split.name, image_id, mask.shape)
    stuff, things = regions(image, options, left_out)
    named = zip(stacked(stuff, things, options.overlap), ["lvis"] * len(things) + ["stuff"] * len(stuff), strict=True)
    covering = [(region, source) for region, source in named if _covers(region.spans, x * height + y)]
    return Explanation(
        split=split.name,
        image_id=image_id,
        path=image.path,
        height=height,
        width=width,
        x=x,
        y=y,
        stored=int(mask[y, x]),
        instances=(sample.instances or {}).get(int(mask[y, x])),
        layers=[_layer(region, source, place == 0) for place, (region, source) in enumerate(covering)],
        left_out=left_out,
    )


def _task(
    dataset: Dataset, sources: Sources, split: str, image_id: int, shape: tuple[int, ...]
) -> tuple[AnnotatedImage, CocoLvisOptions, list[Fault]]:
    """The input of the image's mask: its annotations, the options of the build, and the faults found while reading."""
    things = sources.things(split)
    record = things.images.get(image_id)
    check_inputs(dataset, sources)
    if record is None or (record.height, record.width) != shape:
        listed = "do not list it" if record is None else f"say {record.height} x {record.width}"
        raise DataError(f"image {image_id} is {shape[0]} x {shape[1]} in the data set, the annotations {listed}")
    folder, name = sources.locate(record, split)
    recorded = dataset.index["options"]
    options = CocoLvisOptions(images="none", overlap=recorded["overlap"], compat=recorded["compat"])
    image = CocoLvisPlan(sources, options).annotated_image(things, record, folder, name)
    check_inputs(dataset, sources)
    lost = [fault for file in (things, sources.stuff(folder)) for fault in file.faults if fault.image_id == image_id]
    return image, options, lost


def check_inputs(dataset: Dataset, sources: Sources) -> None:
    """Raise DataError if a file that was read is not one that the data set was built from."""
    for name, digest in sources.digests().items():
        if dataset.index["inputs"].get(name) != digest:
            raise DataError(f"{name} is not the file that {dataset.folder} was built from; check --coco and --lvis")


def _covers(spans: Spans, pixel: int) -> bool:
    """Whether a column-major pixel number is in one of the spans."""
    before = int(spans.starts.searchsorted(pixel, "right"))
    return before > 0 and pixel < spans.stops[before - 1]


def _layer(region: Region, source: str, shows: bool) -> Layer:
    segment = region.segment
    assert segment is not None, "regions() keeps the annotation of each region"
    return Layer(
        source=source,
        annotation_id=segment.annotation_id,
        category_id=segment.category_id,
        category=coco_lvis().categories(source)[segment.category_id],
        class_id=region.class_id,
        class_name=coco_lvis().name(region.class_id),
        area=region.spans.area,
        shows=shows,
    )
