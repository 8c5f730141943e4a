"""The commands of ``ess`` that need no run: which models there are."""

import click

from cli.options import json_option, print_json, print_table


@click.command()
@click.option("--arch", help="Only the encoders of this decoder.")
@click.option("--encoder", help="One encoder: its size, strides, decoders, licence, and the tags of its weights.")
@json_option
def models(arch, encoder, as_json) -> None:
    """List the encoders with the decoders that work, or tell more about one of them.

    \b
    Example:
      ess models --arch deeplabv3plus
      ess models --encoder vit_small_patch14_dinov2
    """
    from ess.encoders import decoders_of, describe, encoders_of, pairs, pretrained_tags

    if encoder is not None:
        about = describe(encoder)
        if as_json:
            print_json(about)
            return
        about["parameters"] = f"{about['parameters'] / 1e6:.1f} M"
        rows = [(name, ", ".join(map(str, value)) if isinstance(value, list) else value) for name, value in about.items()]
        print_table(rows[0], rows[1:])
        return
    found = pairs() if arch is None else [(arch, name) for name in encoders_of(arch)]
    if as_json:
        print_json({"pairs": [{"arch": a, "encoder": e} for a, e in found]})
        return
    names = dict.fromkeys(name for _, name in found)
    print_table(("encoder", "weights", "decoders"), [(n, pretrained_tags(n)[0], " ".join(decoders_of(n))) for n in names])


COMMANDS = (models,)
