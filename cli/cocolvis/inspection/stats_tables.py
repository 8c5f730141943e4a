"""The tables of ``cocolvis stats``."""

from collections.abc import Sequence
from typing import Any

from cli.display import print_table, say
from cocolvis.text import counted

_QUANTILES = {
    "images per class": "image_quantiles_all",
    "pixels per class": "pixel_quantiles_all",
    "images per class present": "image_quantiles",
    "pixels per class present": "pixel_quantiles",
    "classes per image": "classes_an_image",
}

_BINS = (0, 1, 5, 10, 15, 20, 25)
"""The first numbers of classes of the bins in which images are counted; the last bin is open."""

_COMMON = 3
"""Images that a companion must share with a class to be ranked by lift, which is large by chance if there are fewer."""


def print_split(name: str, split: dict[str, Any], top: int) -> None:
    """Print the statistics of one split; rankings list ``top`` classes."""
    labelled = split["labelled"] / max(1, split["pixels"])
    present, absent = split["classes_present"], len(split["absent"])
    said = f"{split['images']:,} images, {present:,} of {present + absent:,} classes, {labelled:.1%} of the pixels labelled"
    say(f"{name}: {said}")
    _print_shares("group", split["groups"], split)
    _print_shares("third of those present", split["thirds"], split)
    _print_imbalance(split)
    _print_quantiles(_QUANTILES, split)
    _print_histogram(split)
    listed = split["classes"]
    _print_ranking("most common", listed[:top], split)
    _print_ranking("least common", listed[top:][-top:] if top else [], split)
    say()
    _print_names("absent", split["absent"], top)
    if split["not_in_train"] is not None:
        _print_names("not in train", split["not_in_train"], top)
    say()


def print_instances(found: dict[str, Any]) -> None:
    """Print the instances of each split, or that they are not recorded."""
    totals = {name: split["instances"] for name, split in found["splits"].items()}
    if None in totals.values():
        say("instances: not recorded in this data set")
    else:
        say("instances: " + ", ".join(f"{name} {total:,}" for name, total in totals.items()))


def print_class(described: dict[str, Any], top: int) -> None:
    """Print one class in each split: its images and areas, and ``top`` companions."""
    group = f", {described['group']}" if described["group"] else ""
    say(f"{described['name']} (class {described['class']}{group})")
    for name, split in described["splits"].items():
        say()
        if not split["images"]:
            say(f"{name}: in no image")
            continue
        shares = [_percent(split[key]).strip() for key in ("image_share", "pixel_share")]
        images = f"{counted(split['images'], 'image')} ({shares[0]} of all)"
        pixels_said = f"{split['pixels']:,} pixels ({shares[1]} of the labelled ones)"
        instances = "" if split["instances"] is None else f", {counted(split['instances'], 'instance')}"
        say(f"{name}: {images}, {pixels_said}{instances}")
        say()
        percent = [_percent(value) for value in split["area_quantiles"].values()]
        pixels = [f"{round(value):>9,}" for value in split["pixel_quantiles"].values()]
        header = ("quantile", *(f"{q:>9}" for q in split["area_quantiles"]))
        print_table(header, [("pixels in an image", *pixels), ("share of the image", *percent)])
        companions = split["companions"]
        _print_companions("most often together with", companions[:top], described["group"])
        enough = [row for row in companions if row["images"] >= _COMMON]
        lifted = sorted(enough, key=lambda row: -row["lift"])[:top]
        _print_companions(f"highest lift (at least {_COMMON} images)", lifted, described["group"])
    say()


def _percent(share: float) -> str:
    """A share with three significant digits, right-aligned, such as "12.3%" or "0.00123%"."""
    return f"{f'{100 * share:.3g}%':>9}"


def _print_shares(title: str, table: dict[str, dict[str, Any]], split: dict[str, Any]) -> None:
    """What groups or thirds of the classes have together."""
    if not table:
        return
    images, pixels = max(1, sum(row["images"] for row in split["classes"])), max(1, split["labelled"])
    optional = [] if split["instances"] is None else ["instances"]
    rows = [
        (
            name,
            n["classes"],
            n["classes_present"],
            *(n[key] for key in optional),
            n["images"],
            f"{n['images'] / images:8.2%}",
            f"{n['pixels'] / pixels:8.2%}",
        )
        for name, n in table.items()
    ]
    say()
    print_table((title, "classes", "present", *optional, "class x image", "   share", "  pixels"), rows)


def _print_imbalance(split: dict[str, Any]) -> None:
    if split["gini"]["images"] is None:
        return
    rows = [
        ("Gini coefficient of all classes", *(_or_dash(split["gini"][what], "10.3f") for what in ("images", "pixels"))),
        ("largest class / smallest present", *(_or_dash(split["imbalance"][what], "10,.0f") for what in ("images", "pixels"))),
    ]
    say()
    print_table(("imbalance", "    images", "    pixels"), rows)


def _or_dash(value: float | None, form: str) -> str:
    """A measure of imbalance; "-" for one that the zeros of a damaged shard leave undefined."""
    return f"{'-':>10}" if value is None else format(value, form)


def _print_quantiles(labels: dict[str, str], split: dict[str, Any]) -> None:
    from cocolvis.inspection.stats import QUANTILES

    rows = [(label, *(round(value) for value in split[key].values())) for label, key in labels.items() if split[key]]
    if rows:
        say()
        print_table(("quantile", *map(str, QUANTILES)), rows)


def _print_histogram(split: dict[str, Any]) -> None:
    """How many images have how many classes."""
    counts = split["classes_an_image_histogram"]
    if not counts:
        return
    rows = []
    for first, after in zip(_BINS, (*_BINS[1:], None), strict=True):
        label = f"{first} or more" if after is None else str(first) if after == first + 1 else f"{first} to {after - 1}"
        images = sum(counts[first:after])
        rows.append((label, images, f"{images / split['images']:8.2%}"))
    say()
    print_table(("classes per image", "images", "   share"), rows)


def _print_ranking(title: str, rows: Sequence[dict[str, Any]], split: dict[str, Any]) -> None:
    if not rows:
        return
    optional = [("group", "group")] if split["groups"] else []
    optional += [("instances", "instances")] if split["instances"] is not None else []
    header = (title, "class", *(name for name, _ in optional), "images", "    share", "pixels", "    share")
    table = [
        (
            row["name"],
            str(row["class"]),
            *(row[key] for _, key in optional),
            row["images"],
            _percent(row["image_share"]),
            row["pixels"],
            _percent(row["pixel_share"]),
        )
        for row in rows
    ]
    say()
    print_table(header, table)


def _print_names(title: str, classes: Sequence[dict[str, Any]], top: int) -> None:
    names = ", ".join(row["name"] for row in classes[:top])
    rest = f" and {len(classes) - top:,} more, which --json lists" if names and len(classes) > top else ""
    say(f"{title}: {len(classes):,} class{'' if len(classes) == 1 else 'es'}{': ' if names else ''}{names}{rest}")


def _print_companions(title: str, companions: Sequence[dict[str, Any]], group: str | None) -> None:
    if not companions:
        return
    optional = ("group",) if group else ()
    rows = [
        (row["name"], str(row["class"]), *(row[key] for key in optional), row["images"], _percent(row["share"]), row["lift"])
        for row in companions
    ]
    say()
    print_table((title, "class", *optional, "images", "    share", "lift"), rows)
