"""``ess preset``: the presets and variants that ship with the package."""

import click

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table, say
from cli.options import json_option
from ess.config import load, preset_names, variant, variant_names

_SHOWN = ("arch", "encoder", "loss", "dim", "crop", "batch_size", "steps", "epochs")
"""The settings that the list of presets shows."""


@command(interrupted=UNCHANGED)
@click.argument("name", required=False, metavar="[NAME[+VARIANT...]]")
@json_option
def preset(name: str | None, as_json: bool) -> None:
    """List the presets and variants, or print all settings of the preset NAME with its variants.

    \b
    Example:
      ess preset coco-lvis+group-norm
    """
    settings = {each: load(each).to_json() for each in (preset_names() if name is None else [name])}
    variants = {each: variant(each) for each in variant_names()}
    if as_json:
        print_json({"presets": settings} | ({"variants": variants} if name is None else {}))
    elif name is not None:
        print_table(("setting", "value"), [(key, str(value)) for key, value in settings[name].items()])
    else:
        print_table(("preset", *_SHOWN), [(each, *(str(found[key]) for key in _SHOWN)) for each, found in settings.items()])
        changes = [(each, ", ".join(f"{key} = {value}" for key, value in found.items())) for each, found in variants.items()]
        say()
        print_table(("variant, as in coco-lvis+NAME", "changes"), changes)
