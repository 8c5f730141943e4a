"""The web application: which address shows which view, as a page and as JSON."""

import hashlib
import json
import re
import socket
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cocolvis.errors import DataError
from cocolvis.explorer.site import about, classes, confusion, gallery
from cocolvis.explorer.site.address import Query, address
from cocolvis.explorer.site.common import NotFound, NotReady, View, chosen_run, class_named, ready
from cocolvis.explorer.site.safety import App, Safety
from cocolvis.explorer.workspace import Workspace

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_WEEK = "private, max-age=604800, immutable"
"""How long browsers keep what has the version of its content in its address."""

_NUMBER = re.compile("[0-9]{1,19}")
_MOST = 2**63 - 1
"""The largest id of an image."""


def application(workspace: Workspace, host: str = "127.0.0.1") -> App:
    """The ASGI application over a workspace, for a server that listens at the address ``host``."""
    return Safety(Starlette(routes=_Site(workspace).routes()), host)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket at ``port``, or at the first free one from 8765 on; raises DataError if there is none, or no such ``host``."""
    if not host:  # the system would take it for every address of this machine
        raise DataError("the host is empty; expected an address such as 127.0.0.1, or 0.0.0.0 to listen at all")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason: OSError | None = None
    for candidate in [port] if port is not None else [*range(8765, 8785), 0]:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen(128)  # requests wait for the server instead of being refused
            return listening
        except UnicodeError:
            listening.close()
            raise DataError(f"cannot listen at {host}: it is not the name of a host") from None
        except OSError as error:
            listening.close()
            reason = error
    where = host if port is None else f"{host}, port {port}"
    raise DataError(f"cannot listen at {where}: {reason.strerror if reason else 'no port is free'}; choose another")


def serve(workspace: Workspace, listening: socket.socket, host: str) -> None:
    """Answer requests at a socket until the process is interrupted."""
    import uvicorn  # imported late: it loads the library of the command line

    workspace.start()
    config = uvicorn.Config(application(workspace, host), log_level="critical", lifespan="off", ws="none", server_header=False)
    uvicorn.Server(config).run([listening])


class _Site:
    """The handlers of all addresses."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        files = sorted((_HERE / "static").iterdir())
        self._static = {path.name: path.read_bytes() for path in files if path.suffix in _TYPES}
        self._version = hashlib.sha256(b"".join(self._static.values())).hexdigest()[:12]

    def routes(self) -> list[Route]:
        """Every address that is answered; nothing else can be requested."""
        pages = {
            "classes": classes.classes,
            "pictures": gallery.pictures,
            "confusion": confusion.confusion,
            "about": about.about,
        }
        found = [Route("/", self._page("classes", classes.classes))]
        for name, view in pages.items():
            found += [Route(f"/{name}", self._page(name, view)), Route(f"/{name}.json", self._json(view))]
        found += [
            Route("/names.json", self._json(lambda workspace, query: classes.names(workspace))),
            Route("/status.json", self._json(_status)),
            Route("/picture", self._find),
            Route("/picture/{id}", self._find),
            Route("/picture/{split}/{id}.json", self._picture_json),
            Route("/picture/{split}/{id}/why.json", self._why),
            Route("/picture/{split}/{id}/runs", self._runs),
            Route("/picture/{split}/{id}/file", self._file),
            Route("/picture/{split}/{id}", self._picture),
            Route("/thumbnails/{image}.jpg", self._thumbnail),
            Route("/static/{version}/{name}", self._asset),
            Route("/favicon.ico", lambda request: RedirectResponse(f"/static/{self._version}/icon.svg")),
            Route("/{rest:path}", self._missing),
        ]
        return found

    @cached_property
    def _templates(self) -> Environment:
        found = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        found.filters |= {"count": "{:,}".format, "percent": _percent, "share": _share}
        found.globals |= {
            "address": address,
            "zip_self": lambda values: [(value, value) for value in values],
            "named": lambda names, texts: [(name, texts[name]) for name in names],
            "workspace": self._workspace,
            "static": lambda name: f"/static/{self._version}/{name}",
            "version": lambda run=None: self._workspace.version(self._workspace.runs.get(run)),
        }
        return found

    def _render(self, name: str, query: Query, status: int = 200, **values: Any) -> Response:
        content = self._templates.get_template(f"{name}.html").render(query=query, link=query.link, **values)
        return HTMLResponse(content.encode("utf-8", "backslashreplace"), status, {"cache-control": "no-store"})

    def _guarded(self, query: Query, name: str, make: Callable[[], Response]) -> Response:
        """What ``make`` returns, or a page that says why there is nothing to show."""
        try:
            return make()
        except NotReady as error:
            found = about.preparing(self._workspace, error.run)
            return self._render("preparing", query, 500 if found["failed"] else 200, here=name, **found)
        except NotFound as error:
            return self._render("error", query, 404, here=name, title="Not found", reason=str(error))
        except DataError as error:
            return self._render("error", query, 400, here=name, title="This cannot be shown", reason=str(error))

    def _page(self, name: str, view: Callable[[Workspace, Query], View]) -> Callable[[Request], Response]:
        def handle(request: Request) -> Response:
            query = _query(request, f"/{name}")
            if name == "pictures" and query.text("add"):
                return self._guarded(query, name, lambda: self._add(query))
            return self._guarded(query, name, lambda: self._render(name, query, here=name, **view(self._workspace, query)))

        return handle

    def _add(self, query: Query) -> Response:
        ready(self._workspace)
        class_named(self._workspace, query.text("add").strip())
        return RedirectResponse(gallery.added(query) or query.path, 303)

    def _json(self, view: Callable[[Workspace, Query], View]) -> Callable[[Request], Response]:
        def handle(request: Request) -> Response:
            return _as_json(lambda: view(self._workspace, _query(request)))

        return handle

    def _find(self, request: Request) -> Response:
        from cocolvis.explorer.site import one_picture

        query = _query(request, "/picture")
        text = request.path_params.get("id") or query.text("id").strip()

        def found() -> Response:
            split = one_picture.find_anywhere(self._workspace, _number(text))
            return RedirectResponse(address(f"/picture/{split}/{int(text)}"), 303)

        return self._guarded(query, "pictures", found)

    def _picture(self, request: Request) -> Response:
        query = _query(request)
        return self._guarded(
            query, "picture", lambda: self._render("picture", query, here="picture", **self._one(request, query))
        )

    def _picture_json(self, request: Request) -> Response:
        return _as_json(lambda: self._one(request, _query(request)))

    def _one(self, request: Request, query: Query) -> View:
        from cocolvis.explorer.site import one_picture

        split, image_id = _place(request)
        return one_picture.view(self._workspace, split, image_id, query)

    def _why(self, request: Request) -> Response:
        from cocolvis.explorer.site import one_picture

        def explained() -> View:
            x, y = (_number(request.query_params.get(name, "")) for name in "xy")
            return one_picture.explain(self._workspace, *_place(request), x, y)

        return _as_json(explained)

    def _runs(self, request: Request) -> Response:
        from cocolvis.explorer.pictures import is_shown, runs_as_stored
        from cocolvis.explorer.site import one_picture

        def found() -> Response:
            workspace, query = self._workspace, _query(request)
            image = one_picture.find(workspace, *_place(request))
            run = chosen_run(workspace, query)
            if run is not None:
                runs = one_picture.predicted_runs(workspace, run, image)
            else:
                place = ready(workspace).place(image)
                runs = workspace.splits[place.split].runs(place.row)
            if runs is None:
                raise NotFound("the run has no prediction for this image")
            if not is_shown(runs.height, runs.width):
                raise NotFound("the mask is too large to be shown here")
            return Response(runs_as_stored(runs), media_type="application/octet-stream", headers={"cache-control": "no-cache"})

        return _plainly(found)

    def _file(self, request: Request) -> Response:
        from cocolvis.explorer.pictures import NoPicture, picture, read_sample
        from cocolvis.explorer.site import one_picture

        def found() -> Response:
            image = one_picture.find(self._workspace, *_place(request))
            sample = read_sample(self._workspace, image)
            try:
                content, kind = picture(self._workspace, image, sample)
            except NoPicture as error:
                raise NotFound(str(error)) from None
            return self._lasting(content, kind, _query(request), bool(sample.content))  # other files may be repaired

        return _plainly(found)

    def _thumbnail(self, request: Request) -> Response:
        def found() -> Response:
            from cocolvis.explorer.pictures import thumbnail

            workspace, query = self._workspace, _query(request)
            image = _number(request.path_params["image"])
            if image >= len(ready(workspace)):
                raise NotFound(f"the data set has {len(ready(workspace))} images, not a number {image}")
            marked = tuple(class_named(workspace, name).id for name in query.all("mark"))
            content, shows_picture = thumbnail(workspace, image, marked, self._confused(query, image))
            return self._lasting(content, "image/jpeg", query, shows_picture)

        return _plainly(found)

    def _lasting(self, content: bytes, kind: str, query: Query, lasts: bool = True) -> Response:
        """A picture that browsers keep, if it lasts and its address has the version of the files that it is drawn from."""
        current = self._workspace.version(chosen_run(self._workspace, query))
        kept = lasts and query.text("v") == current
        return Response(content, media_type=kind, headers={"cache-control": _WEEK if kept else "no-store"})

    def _confused(self, query: Query, image: int) -> Any:
        from cocolvis.explorer.pictures import Confused

        run = chosen_run(self._workspace, query)
        if run is None:
            return None
        ready(self._workspace, run)
        if run.scores is None or (row := run.scores.row(image)) is None:
            return None
        truth, predicted = (class_named(self._workspace, query.text(name), run) for name in ("truth", "predicted"))
        return Confused(run, row, truth.id, predicted.id)

    def _asset(self, request: Request) -> Response:
        """A file of the pages; its folder is their version, so that what it imports is of the same version too."""
        name = request.path_params["name"]
        if name not in self._static or request.path_params["version"] != self._version:
            return self._missing(request)
        return Response(self._static[name], media_type=_TYPES[Path(name).suffix], headers={"cache-control": _WEEK})

    def _missing(self, request: Request) -> Response:
        reason = f"there is no page {request.url.path}"
        return self._render("error", _query(request), 404, here="", title="Not found", reason=reason)


def _query(request: Request, path: str | None = None) -> Query:
    return Query(path or request.url.path, request.query_params.multi_items())


def _status(workspace: Workspace, query: Query) -> View:
    return about.preparing(workspace, chosen_run(workspace, query))


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > _MOST:
        raise NotFound(f"{text!r} is not a number from 0 to {_MOST}")
    return int(text)


def _place(request: Request) -> tuple[str, int]:
    return request.path_params["split"], _number(request.path_params["id"])


def _as_json(view: Callable[[], View]) -> Response:
    def found() -> Response:
        return _json_response(200, view())

    try:
        return found()
    except NotReady:
        return _json_response(503, {"error": "the data set is being prepared; ask /status.json"})
    except NotFound as error:
        return _json_response(404, {"error": str(error)})
    except DataError as error:
        return _json_response(400, {"error": str(error)})


def _json_response(status: int, content: Any) -> Response:
    try:
        encoded = msgspec.json.encode(content)
    except UnicodeEncodeError:  # the name of a folder is not UTF-8
        encoded = json.dumps(content).encode()
    return Response(encoded, status, {"cache-control": "no-store"}, "application/json")


def _plainly(make: Callable[[], Response]) -> Response:
    """What ``make`` returns, or one line that says why there is nothing."""
    try:
        return make()
    except NotReady:
        return _line(503, "the data set is being prepared")
    except NotFound as error:
        return _line(404, error)
    except DataError as error:
        return _line(400, error)


def _line(status: int, reason: object) -> Response:
    return Response(f"{reason}\n".encode("utf-8", "backslashreplace"), status, media_type="text/plain")


def _percent(value: float | None) -> str:
    """A score 0..1 as a text such as "43.2"; a dash for None."""
    return "\u2013" if value is None else f"{100 * value:.1f}"


def _share(value: float | None) -> str:
    """A share 0..1 as a text such as "43 %", "0.4 %"."""
    if not value:
        return "\u2013" if value is None else "0"
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.1f} %" if value >= 0.001 else "< 0.1 %"
