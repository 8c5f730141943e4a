"""The commands of ``ess`` that use a trained run: evaluate, predict; those that make something new of it stand beside."""

import sys

import click

from cli import made_commands
from cli.display import print_json, print_table, progress, say
from cli.options import command, json_option, path_argument, path_option
from cli.run_options import Numbers, checkpoint_option, device_option, inference_options, run_argument


@command("eval", interrupted="the scores were not printed; the same command begins again")
@run_argument
@path_argument("data")
@click.option("--split", default="val", show_default=True, help="Split to evaluate on.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images.")
@click.option("--top-n", type=Numbers(int), default=(), help="mIoU of the N classes with the most training images: N[,N...].")
@path_option("--per-class", help="CSV to write: pixels, IoU and accuracy of each class.")
@path_option("--plot", help="Picture to draw: mIoU against the n most frequent classes.")
@click.option("--published", is_flag=True, help="Average the IoU as the published code does: absent but predicted counts 0.")
@click.option("--skip-damaged", is_flag=True, help="Leave out images that cannot be read, and tell which.")
@inference_options
@checkpoint_option
@device_option
@path_option("--image-root", help="Where the pictures lie, for a data set built with --images path.")
@json_option
def evaluate(
    run,
    data,
    split,
    limit,
    top_n,
    per_class,
    plot,
    published,
    skip_damaged,
    checkpoint,
    device,
    image_root,
    as_json,
    **inference,
) -> None:
    """Score a run: mIoU, accuracies and mIoU by frequency group, over classes that occur in the truth.

    \b
    Example:
      ess eval run ~/cocolvis --top-n 50,200,1284 --per-class classes.csv
    """
    from cocolvis.storage.dataset import Dataset
    from ess.data.damage import describe_skipped
    from ess.evaluation import reports
    from ess.evaluation.evaluate import count_pixels, image_indices, scores_of
    from ess.inference.predictor import Predictor
    from ess.inference.views import Inference

    dataset = Dataset.open(data, image_root)
    images = reports.training_images(dataset) if top_n or per_class or plot else None
    reports.check_top(top_n, dataset)
    with progress("eval") as show:
        predictor = Predictor.from_run(run, device, checkpoint, Inference(**inference))
        indices, damaged = image_indices(dataset, split, limit), [] if skip_damaged else None
        confusion = count_pixels(predictor, dataset, split=split, indices=indices, damaged=damaged, progress=show)
    scores = scores_of(confusion, dataset, published=published, damaged=damaged or ())
    for fault in damaged or ():
        say(f"skipped a damaged image: {fault}", err=True)
    if images is not None:
        curve = reports.frequency_curve(confusion.iou(published), images)
        scores |= {"top_n": reports.top_scores(curve, top_n)} if top_n else {}
    if per_class:
        reports.write_classes(per_class, confusion, dataset, images, published=published)
    if plot:
        reports.plot_curve(plot, curve, images)
    if as_json:
        print_json(scores)
        return
    _print_scores(scores)
    left = f", {describe_skipped(scores['skipped'])}" if scores["skipped"] else ""
    say()
    say(f"{scores['images']} images of split {split}{left}")


def _print_scores(scores: dict) -> None:
    named = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy", "fw IoU": "fw_iou"}
    rows = {name: scores[key] for name, key in named.items()}
    rows |= {f"mIoU, {name}": value for name, value in scores["groups"].items()}
    rows |= {f"mIoU, {top['n']} most frequent": top["miou"] for top in scores.get("top_n", ())}
    print_table(("score", "value"), [(name, "none" if value is None else f"{value:.4f}") for name, value in rows.items()])


@command(interrupted="finished predictions are kept: go on with --skip-existing")
@run_argument
@click.argument("images", nargs=-1, required=True, metavar="INPUT...")
@path_option("--out", required=True, help="Folder for the results.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["png", "overlay", "rle"]),
    default=("png", "overlay"),
    show_default=True,
    help="png: 16-bit class ids; overlay: with names; rle: predictions.json in COCO's form. May be repeated.",
)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Of a video, every Nth frame.")
@click.option("--skip-existing", is_flag=True, help="Go on where an earlier call ended: what has its results is left alone.")
@inference_options
@checkpoint_option
@device_option
def predict(run, images, out, formats, every, skip_existing, checkpoint, device, **inference) -> None:
    """Segment pictures of any size, and videos: files, folders, globs, or - for a list of paths on stdin.

    \b
    Example:
      ess predict run photo.jpg holiday/ --out predictions
    """
    from ess.inference.inputs import find_inputs, read_list
    from ess.inference.predictor import Predictor
    from ess.inference.results import predict_files
    from ess.inference.views import Inference

    lines = read_list(sys.stdin.buffer.read()) if "-" in images else []
    inputs = find_inputs([name for name in images if name != "-"] + lines, exclude=out)
    with progress("predict") as show:
        predictor = Predictor.from_run(run, device, checkpoint, Inference(**inference))
        faults = predict_files(predictor, inputs, out, formats, every=every, skip_existing=skip_existing, progress=show)
    if len(faults) < len(inputs):
        say(f"The predictions lie in {out}.")
    for fault in faults:
        say(f"Error: {fault}", err=True)
    if faults:
        raise click.exceptions.Exit(1)


COMMANDS = (evaluate, predict, *made_commands.COMMANDS)
