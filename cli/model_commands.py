"""The commands of ``ess`` that need no run: which models there are."""

import click

from cli.options import json_option, print_json, print_table


@click.command()
@click.option("--arch", help="Only the encoders of this decoder.")
@json_option
def models(arch, as_json) -> None:
    """List the pairs of decoder and encoder that work.

    \b
    Example:
      ess models --arch deeplabv3plus
    """
    from ess.models import encoders_of, pairs

    found = pairs() if arch is None else [(arch, encoder) for encoder in encoders_of(arch)]
    if as_json:
        print_json({"pairs": [{"arch": a, "encoder": e} for a, e in found]})
        return
    print_table(("arch", "encoder"), found)


COMMANDS = (models,)
