"""Hook of mkdocs: README, CONTRIBUTING and CHANGELOG become pages of the site, with their links into docs/ adapted."""

import re
from html import escape
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def as_page(text: str) -> str:
    """The text of a document at the root of the repository, with links as they are inside docs/."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(rf"\]\(({'|'.join(map(re.escape, PAGES))})", lambda match: f"]({PAGES[match[1]]}", text)


def on_files(files: Files, *, config) -> Files:
    """Add the pages to the files of the site."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=as_page((ROOT / name).read_text(encoding="utf-8"))))
    return files


def as_html(code: re.Match) -> str:
    """The code of a table cell with its escaped bars as HTML."""
    return "<code>" + escape(code[1]).replace("\\|", "&#124;") + "</code>"


def on_page_markdown(markdown: str, **_) -> str:
    """Adapt what GitHub reads differently: links to documents at the root, and escaped bars in the code of tables."""
    names = "|".join(map(re.escape, PAGES))
    markdown = re.sub(rf"\]\(\.\./({names})", lambda match: f"]({PAGES[match[1]]}", markdown)
    return re.sub(r"`([^`\n]*\\\|[^`\n]*)`", as_html, markdown)
