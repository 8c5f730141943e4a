"""The command ``ess``: train, evaluate and use embedding segmentation models, one module per command."""

import click

from cli.commands import Group
from cli.ess import info
from cli.ess.evaluation import analyze, calibrate, compare, eval, report
from cli.ess.inference import add_class, export, predict
from cli.ess.training import bench, models, preset, train


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="ess")
def main() -> None:
    """Train embedding segmentation models with more than a thousand classes on one GPU."""


for command in (
    train.train,
    eval.evaluate,
    compare.compare,
    calibrate.calibrate,
    analyze.analyze,
    report.report,
    predict.predict,
    export.export,
    add_class.add_class,
    info.info,
    models.models,
    preset.preset,
    bench.bench,
):
    main.add_command(command)
