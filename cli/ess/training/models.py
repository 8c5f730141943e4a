"""``ess models``: the encoders, and the decoders that work with them."""

import click

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table
from cli.options import json_option


@command(interrupted=UNCHANGED)
@click.option(
    "--arch", help="Only the encoders that work with this decoder; with --encoder: fail unless the two work together."
)
@click.option("--encoder", help="Describe one encoder: size, strides, decoders, licence, and the tags of its weights.")
@json_option
def models(arch: str | None, encoder: str | None, as_json: bool) -> None:
    """List the encoders with the decoders that work with them, or describe one encoder.

    \b
    Example:
      ess models --arch deeplabv3plus
      ess models --encoder vit_small_patch14_dinov2
    """
    from ess.models.encoders import check_pair, decoders_of, encoders_of, pairs, pretrained_tags

    if encoder is not None:
        if arch is not None:
            check_pair(arch, encoder)
        _print_encoder(encoder, as_json)
        return
    found = pairs() if arch is None else [(arch, name) for name in encoders_of(arch)]
    if as_json:
        print_json({"pairs": [{"arch": a, "encoder": e} for a, e in found]})
        return
    names = dict.fromkeys(name for _, name in found)
    print_table(("encoder", "weights", "decoders"), [(n, pretrained_tags(n)[0], " ".join(decoders_of(n))) for n in names])


def _print_encoder(encoder: str, as_json: bool) -> None:
    from ess.models.encoders import describe

    about = describe(encoder)
    if as_json:
        print_json(about)
        return
    about["parameters"] = f"{about['parameters'] / 1e6:.1f} M"
    header, *rows = [(name, ", ".join(map(str, value)) if isinstance(value, list) else value) for name, value in about.items()]
    print_table(header, rows)
