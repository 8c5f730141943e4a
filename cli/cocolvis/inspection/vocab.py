"""``cocolvis vocab``: the 1284 classes."""

import click

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table
from cli.options import json_option


@command(interrupted=UNCHANGED)
@click.option("--search", metavar="TEXT", help="Only classes whose name or synset contains TEXT.")
@json_option
def vocab(search: str | None, as_json: bool) -> None:
    """List the 1284 classes: name, kind, frequency group, synset and source categories.

    \b
    Example:
      cocolvis vocab --search cabinet
    """
    from cocolvis.vocabulary import coco_lvis

    vocabulary = coco_lvis()
    classes = list(vocabulary) if search is None else vocabulary.search(search)
    if as_json:
        print_json({"classes": [c.to_json() for c in classes]})
        return
    sources = (" ".join(f"{source}:{category}" for source, category in c.sources.items()) for c in classes)
    rows = [(str(c.id), c.name, c.kind, c.group, c.synset, s) for c, s in zip(classes, sources, strict=True)]
    print_table(("class", "name", "kind", "group", "synset", "sources"), rows)
