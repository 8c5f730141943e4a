"""Draws docs/pictures/imports.svg: the folders and their imports, derived from the code.

`make generate` runs it; a test fails while the picture is out of date.
"""

from pathlib import Path

from import_graph import PACKAGES, ROOT, folders

PICTURE = ROOT / "docs" / "pictures" / "imports.svg"
COLOURS = {"cli": "#e8def8", "ess": "#d7ebd9", "cocolvis": "#d6e6f7"}
BOX, GAP, ROW, HEIGHT, MARGIN = 158, 22, 58, 32, 16
"""Pixels: a box's width, the gap between columns, the distance of two rows, a box's height, the margin."""

Graph = dict[str, set[str]]
Box = tuple[int, int, int]
"""Left edge, top edge and width of a folder's box, in pixels."""


def library(graph: Graph) -> Graph:
    """The graph to draw: the folders of ``cli`` are one node, entry points and folders without imports are left out."""

    def node(name: str) -> str:
        return "cli" if name.split("/")[0] == "cli" else name

    merged: Graph = {}
    for name, targets in graph.items():
        if not name.startswith("import "):
            merged.setdefault(node(name), set()).update(node(t) for t in targets if not t.startswith("import "))
    used = set().union(*merged.values())
    return {name: targets - {name} for name, targets in merged.items() if targets or name in used}


def reachable(graph: Graph, name: str) -> set[str]:
    """All folders that ``name`` imports, directly or through others."""
    return graph[name].union(*(reachable(graph, target) for target in graph[name]))


def reduced(graph: Graph) -> Graph:
    """The graph without the imports that follow from others: A -> C goes where A -> B and B -> C are there."""
    return {
        name: {target for target in targets if not any(target in reachable(graph, other) for other in targets)}
        for name, targets in graph.items()
    }


def levels(graph: Graph) -> dict[str, int]:
    """Folder -> the length of the longest chain of imports below it."""
    found: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((level(target) for target in graph[name]), default=-1)
        return found[name]

    for name in graph:
        level(name)
    return found


def columns(graph: Graph) -> dict[str, int]:
    """Folder -> its column.

    The folders on the main chain of ``cocolvis`` share one column and those of ``ess`` the column to its right. Every other
    folder has a column of its own, so that arrows pass beside it.
    """
    level = levels(graph)
    users = {name: sum(name in reachable(graph, other) for other in graph) for name in graph}
    main: dict[tuple[str, int], str] = {}
    for name in sorted(graph, key=lambda name: (users[name], name)):
        main[name.split("/")[0], level[name]] = name
    aside = sorted((name for name in graph if name not in main.values()), key=lambda name: (level[name], name))
    left = [name for name in aside if name.startswith("cocolvis")]
    right = [name for name in aside if not name.startswith("cocolvis")]
    found = {name: len(left) + (name.split("/")[0] == "ess") for name in main.values()}
    found |= {name: column for column, name in enumerate(left)}
    return found | {name: len(left) + 2 + column for column, name in enumerate(reversed(right))}


def boxes(graph: Graph) -> dict[str, Box]:
    """Folder -> its box. ``cli`` on top and the modules at the root of ``cocolvis`` at the bottom take the whole width."""
    column, level = columns(graph), levels(graph)
    top, whole = max(level.values()), (1 + max(column.values())) * (BOX + GAP) - GAP
    found = {name: (MARGIN + column[name] * (BOX + GAP), MARGIN + (top - level[name]) * ROW, BOX) for name in graph}
    return found | {name: (MARGIN, found[name][1], whole) for name in ("cli", "cocolvis") if name in found}


def arrow(above: Box, below: Box) -> str:
    """An SVG path from the bottom of one box to the top of another; vertical where a wide box allows it."""
    narrow = min(above, below, key=lambda box: box[2])
    x0 = (narrow if above[2] > BOX else above)[0] + BOX // 2
    x1 = (narrow if below[2] > BOX else below)[0] + BOX // 2
    y0, y1 = above[1] + HEIGHT, below[1] - 5
    bend = (y1 - y0) // 2
    return f'<path d="M{x0} {y0}C{x0} {y0 + bend} {x1} {y1 - bend} {x1} {y1}"/>'


def label(name: str) -> str:
    """The text of a box."""
    if name == "cli":
        return "cli: the commands"
    return f"{name}/*.py" if name in PACKAGES else name


def draw(graph: Graph) -> str:
    """The picture of a folder graph, as SVG."""
    graph = library(graph)
    places = boxes(graph)
    width = max(x + w for x, _, w in places.values()) + MARGIN
    height = max(y for _, y, _ in places.values()) + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<g fill="none" stroke="#555" stroke-width="1.3" marker-end="url(#tip)">',
    ]
    lines += [arrow(places[name], places[target]) for name in sorted(graph) for target in sorted(reduced(graph)[name])]
    lines.append("</g>")
    for name, (x, y, w) in sorted(places.items()):
        colour = COLOURS[name.split("/")[0]]
        lines.append(f'<rect x="{x}" y="{y}" width="{w}" height="{HEIGHT}" rx="5" fill="{colour}" stroke="#555"/>')
        lines.append(f'<text x="{x + w // 2}" y="{y + 21}" text-anchor="middle">{label(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main(picture: Path = PICTURE) -> None:
    """Write the picture."""
    picture.write_text(draw(folders()), encoding="utf-8")


if __name__ == "__main__":
    main()
