"""Takes the picture of the explorer in the README, of at most 200 KB.

    python tools/take_screenshot.py demo/data --predictions demo/predicted

Needs Chromium, as the tests of the explorer do: `make browser` installs it.
"""

import io
import sys
import tempfile
from pathlib import Path

import click
from PIL import Image

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


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--predictions", type=click.Path(path_type=Path), multiple=True)
@click.option("--address", help="The page to show. Default: the first picture of val, with its names.")
@click.option("--out", type=click.Path(path_type=Path), default=PICTURE, show_default=True)
def main(data: Path, predictions: tuple[Path, ...], address: str | None, out: Path) -> None:
    """Take a picture of a page of the explorer over DATA."""
    sys.path.insert(0, str(ROOT / "tests" / "explorer" / "helpers"))
    from browser import READY, chromium, explorer, tab, until

    arguments = [word for folder in predictions for word in ("--predictions", str(folder))]
    with (
        tempfile.TemporaryDirectory() as cache,
        explorer(data, *arguments, cache=Path(cache)) as site,
        chromium() as browser,
        tab(browser, site, viewport=SIZE, color_scheme="light") as page,
    ):
        page.goto("/about")
        until(page, READY)
        if address is None:
            page.goto("/pictures?split=val")
            address = f"{page.locator('.gallery a').first.get_attribute('href')}?names=1"
        page.goto(address, wait_until="networkidle")
        page.wait_for_timeout(500)  # the mask is drawn
        out.write_bytes(reduced(page.screenshot()))
    click.echo(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
