"""``cocolvis view``: the explorer in the browser."""

import os
import sys
from pathlib import Path

import click

from cli.commands import command
from cli.display import say
from cli.options import image_root_option, path_argument, path_option, source_options
from cocolvis.errors import DataError


@command(interrupted="the explorer has ended; nothing was changed")
@path_argument("dir")
@path_option("--predictions", multiple=True, help="Folder that `ess predict --format shards` wrote. May be repeated.")
@image_root_option
@source_options(required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 opens it to the network.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen at.  [default: the first free one from 8765 on]")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def view(
    dir: Path,
    predictions: tuple[Path, ...],
    image_root: Path | None,
    coco: tuple[Path, ...],
    lvis: tuple[Path, ...],
    host: str,
    port: int | None,
    open_browser: bool,
) -> None:
    """Explore a data set in the browser: classes, pictures, masks, and the predictions of runs.

    With --coco and --lvis, a click on a pixel tells which annotation it came from. Needs `pip install 'cocolvis-ess[view]'`.

    \b
    Example:
      cocolvis view ~/cocolvis --predictions predictions --open
    """
    try:
        import uvicorn  # noqa: F401 (the application imports it only when it serves)

        from cocolvis.explorer.site.app import listen, serve
        from cocolvis.explorer.workspace import Workspace
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "starlette", "uvicorn"):
            raise
        raise DataError(f"{error.name} is not installed: pip install 'cocolvis-ess[view]'") from None
    sources = None
    if coco:
        from cocolvis.sources.inputs import Sources
        from cocolvis.vocabulary import coco_lvis

        sources = Sources(coco, lvis, coco_lvis())
    workspace = Workspace(dir, predictions, image_root=image_root, sources=sources)
    listening = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{'localhost' if host in ('0.0.0.0', '::') else shown}:{listening.getsockname()[1]}/"
    say(f"The explorer is at {address} (Ctrl-C ends it).")
    sys.stdout.flush()
    if open_browser:
        _open(address)
    serve(workspace, listening, host)


def _open(address: str) -> None:
    """Open a page in the browser, unless that would be one in this terminal."""
    import webbrowser

    if sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        webbrowser.open(address)
