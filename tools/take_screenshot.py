"""Takes the picture of the explorer in the README, of at most 200 KB.

    python tools/take_screenshot.py [DATA]

Without DATA, a sample is generated. Needs Chromium, as the tests of the explorer do: `make browser` installs it.
"""

import io
import sys
import tempfile
from pathlib import Path

import click
from PIL import Image

from cocolvis.building.build import build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.sample.writer import write_sample
from cocolvis.sources.inputs import Sources
from cocolvis.vocabulary import coco_lvis

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "explorer.png"
MOST = 200_000
SIZE = {"width": 1200, "height": 760}


def reduced(content: bytes) -> bytes:
    """A PNG of at most ``MOST`` bytes with as many colours as fit; raises ValueError if none do."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    for colours in (256, 192, 128, 96, 64, 48, 32):
        memory = io.BytesIO()
        picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            memory, "PNG", optimize=True
        )
        if memory.tell() <= MOST:
            return memory.getvalue()
    raise ValueError(f"the picture does not fit into {MOST} bytes")


def generated(folder: Path) -> Path:
    """A data set of a generated sample, called "sample"."""
    write_sample(folder / "tree", images=24, classes=60, size=360, seed=3)
    sources = Sources(folder / "tree" / "coco", folder / "tree" / "lvis", coco_lvis())
    build(sources, folder / "sample", CocoLvisOptions())
    return folder / "sample"


@click.command()
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--predictions", type=click.Path(path_type=Path), multiple=True)
@click.option("--address", help="The page to show. Default: the first wide picture, with its names.")
@click.option("--out", type=click.Path(path_type=Path), default=PICTURE, show_default=True)
def main(data: Path | None, predictions: tuple[Path, ...], address: str | None, out: Path) -> None:
    """Take a picture of a page of the explorer over DATA."""
    sys.path.insert(0, str(ROOT / "tests" / "explorer" / "helpers"))
    from browser import chromium, explorer, tab, wait_until_ready

    arguments = [word for folder in predictions for word in ("--predictions", str(folder))]
    with (
        tempfile.TemporaryDirectory() as temporary,
        explorer(data or generated(Path(temporary)), *arguments, cache=Path(temporary) / "cache") as site,
        chromium() as browser,
        tab(browser, site, viewport=SIZE, color_scheme="light") as page,
    ):
        wait_until_ready(page, *(folder.resolve().name for folder in predictions))
        if address is None:
            listed = page.evaluate("fetch('/pictures.json').then((answer) => answer.json())")["pictures"]
            wide = next(one for one in listed if one["width"] > one["height"])
            address = f"/picture/{wide['split']}/{wide['id']}?names=1&opacity=50"
        page.goto(address, wait_until="networkidle")
        page.wait_for_timeout(500)  # the mask is drawn
        out.write_bytes(reduced(page.screenshot()))
    click.echo(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
