"""``cocolvis verify``: checks every digest, every picture, every mask."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.commands import UNCHANGED, command
from cli.display import BYTES, print_json, progress, say
from cli.options import image_root_option, json_option, path_argument, source_options
from cocolvis.errors import DataError
from cocolvis.limits import cores
from cocolvis.text import counted

if TYPE_CHECKING:
    from cocolvis.storage.dataset import Dataset


@command(interrupted=UNCHANGED)
@path_argument("dir")
@click.option("--oracle", is_flag=True, help="Also derive every mask again with lvis and pycocotools, and compare.")
@source_options(required=False)
@click.option("--decode", is_flag=True, help="Also look for damage inside every picture, on all cores.")
@image_root_option
@json_option
def verify(
    dir: Path,
    oracle: bool,
    coco: tuple[Path, ...],
    lvis: tuple[Path, ...],
    decode: bool,
    image_root: Path | None,
    as_json: bool,
) -> None:
    """Check every shard and every image against its digest, and with --oracle every mask; exit 1 on any fault.

    \b
    Example:
      cocolvis verify ~/cocolvis --oracle --coco ~/coco --lvis ~/lvis
    """
    from cocolvis.inspection.verify import require_pictures
    from cocolvis.inspection.verify import verify as check_shards
    from cocolvis.storage.dataset import Dataset

    if image_root is not None and not decode:
        raise click.UsageError("--image-root needs --decode")
    if oracle != bool(coco):
        raise click.UsageError("--oracle, --coco and --lvis are used together")
    dataset = Dataset.open(dir, image_root)
    if decode:
        require_pictures(dataset)
    with progress("verify", BYTES) as show:
        faults = check_shards(dataset, show)
    counts = {"shards": len(dataset.index["shards"])}
    damaged = []
    if decode:
        damaged = [fault for fault in _damaged_pictures(dataset) if fault not in faults]
        counts["pictures"] = sum(dataset.splits.values())
    if oracle and faults:
        say("the masks were not compared, because the shards are not as recorded", err=True)
    elif oracle:
        try:
            faults += _wrong_masks(dataset, coco, lvis, counts)
        except DataError:
            if damaged:
                _print_faults(counts, damaged, as_json)
            raise
    faults += damaged
    _print_faults(counts, faults, as_json)
    click.get_current_context().exit(1 if faults else 0)


def _damaged_pictures(dataset: "Dataset") -> list[str]:
    """A line for each picture that cannot be decoded."""
    from cocolvis.inspection.verify import check_pictures

    with progress("decode") as show:
        return list(check_pictures(dataset, cores(), show))


def _wrong_masks(dataset: "Dataset", coco: tuple[Path, ...], lvis: tuple[Path, ...], counts: dict[str, int]) -> list[str]:
    """A line for each mask that differs from the oracle's; the numbers of compared masks are added to ``counts``."""
    from cocolvis.inspection.oracle import check

    with progress("oracle") as show:
        result = check(dataset, coco, lvis, show, show.phase)
    counts |= {"masks": result.images, "skipped_annotations": result.skipped}
    return result.faults()


def _print_faults(counts: dict[str, int], faults: list[str], as_json: bool) -> None:
    if as_json:
        print_json(counts | {"faults": faults})
        return
    for fault in faults:
        say(fault)
    checked = ", ".join(counted(count, what.removesuffix("s").replace("_", " ")) for what, count in counts.items())
    say(f"{checked}: {counted(len(faults), 'fault') if faults else 'all as recorded'}")
