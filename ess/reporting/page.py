"""Renders the page: one HTML file with its style, script, tables and pictures, which makes no request to anywhere."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ess.reporting import charts
from ess.reporting.embedded import data_uri


def render(content: dict[str, Any]) -> bytes:
    """The page with the given content, the names of report.html; all text is escaped. Style and colours are the explorer's.

    Its policy allows only this style, this script and embedded images, so that even a hostile name could load nothing.
    """
    style = _file("cocolvis.explorer.site", "static/explorer.css") + _file("ess.reporting", "templates/report.css")
    script = _file("ess.reporting", "templates/report.js")
    environment = Environment(
        loader=FunctionLoader(lambda name: _file("ess.reporting", f"templates/{name}")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"count": "{:,}".format, "percent": _percent, "signed": "{:+.1f}".format}
    policy = f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'"
    icon = data_uri("image/svg+xml", _file("cocolvis.explorer.site", "static/icon.svg").encode())
    fixed = {"style": Markup(style), "script": Markup(script), "policy": policy, "icon": icon, "size": charts}
    return environment.get_template("report.html").render(**fixed, **content).encode("utf-8", "backslashreplace")


def _file(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The source of an inline style or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _percent(value: float | None, digits: int = 1) -> str:
    """A share 0..1 as a text such as "43.2"; a dash for None and NaN."""
    return "\u2013" if value is None or value != value else f"{100 * value:.{digits}f}"
