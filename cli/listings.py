"""What the commands of ``cocolvis`` print about a data set."""

from typing import TYPE_CHECKING

from cli.display import Size, print_json, print_table, say

if TYPE_CHECKING:  # these modules are slow to import; a command that prints has them already
    from cocolvis.inspection.diff import Difference
    from cocolvis.inspection.why import Explanation
    from cocolvis.storage.dataset import Dataset
    from cocolvis.vocabulary import Vocabulary

LISTED = 3
"""Faults of a kind that are listed on the screen; the folder of the data set holds all."""

RANKED = 10
"""Classes, images or pairs at either end of a ranking that are printed; --json holds all."""

_QUANTILES = {"images a class": "image_quantiles", "pixels a class": "pixel_quantiles", "classes an image": "classes_an_image"}


def print_summary(dataset: "Dataset", as_json: bool) -> None:
    """Splits, options and faults of a data set, as ``build`` and ``info`` print them."""
    index = dataset.index
    size = {split: sum(s["bytes"] for s in index["shards"] if s["split"] == split) for split in dataset.splits}
    report = index["report"]
    if as_json:
        everything = {"counts": report["counts"], "faults": list(dataset.faults())}
        splits = {split: counts | {"bytes": size[split]} for split, counts in index["splits"].items()}
        described = {
            "folder": str(dataset.folder),
            "digest": index["digest"],
            "mask_rule": index.get("mask_rule"),
            "classes": len(dataset.vocabulary),
            "splits": splits,
        }
        print_json(described | {"options": index["options"], "inputs": index["inputs"], "report": everything})
        return
    rows = [(split, n["images"], n["shards"], Size(size[split])) for split, n in index["splits"].items()]
    print_table(("split", "images", "shards", "size"), rows)
    shown = ("dataset", "limit", "images", "overlap", "compat", "decode")
    options = ", ".join(f"{name} {index['options'][name]}" for name in shown if index["options"].get(name) is not None)
    say()
    say(f"{len(dataset.vocabulary)} classes; {options}, mask rule {index.get('mask_rule', 'not recorded')}")
    say(f"digest of all contents: {index['digest']}")
    listing = "faults.jsonl" if report.get("file") else "dataset.json"
    for kind, count in report["counts"].items():
        say()
        say(f"{kind}: {count}")
        faults = [fault for fault in report["faults"] if fault["kind"] == kind]
        for fault in faults[:LISTED]:
            named = [f"{what} {fault[f'{what}_id']}" for what in ("image", "annotation") if fault[f"{what}_id"] is not None]
            where = f"{', '.join(named)} ({fault['source']})" if named else fault["source"]
            say(f"  {where}: {fault['reason']}")
        if count > LISTED:
            say(f"  ... and {count - LISTED} more, listed in {dataset.folder / listing}")


def print_split(name: str, split: dict, classes: int) -> None:
    """The statistics of one split, as ``stats`` prints them; ``classes`` is the size of the vocabulary."""
    labelled = split["labelled"] / max(1, split["pixels"])
    present = f"{split['classes_present']:,} of {classes:,} classes"
    say(f"{name}: {split['images']:,} images, {present}, {labelled:.1%} of the pixels labelled")
    say()
    total = max(1, split["labelled"])
    rows = [(group, *list(n.values())[:3], f"{n['pixels'] / total:8.2%}") for group, n in split["groups"].items()]
    if rows:
        print_table(("group", "classes", "present", "class x image", "pixels"), rows)
        say()
    rows = [(label, *(round(value) for value in split[key].values())) for label, key in _QUANTILES.items() if split[key]]
    if rows:
        print_table(("quantile", *split["classes_an_image"]), rows)
    listed = split["classes"]
    for title, part in (("commonest", listed[:RANKED]), ("rarest", listed[RANKED:][-RANKED:])):
        if part:
            say()
            columns = ("group", "images", "pixels") if split["groups"] else ("images", "pixels")
            rows = [(row["name"], str(row["class"]), *(row[column] for column in columns)) for row in part]
            print_table((title, "class", *columns), rows)
    say()


def print_difference(found: "Difference", names_a: "Vocabulary", names_b: "Vocabulary", as_json: bool) -> None:
    """What ``diff`` found."""
    pairs = [
        {"a": p.a, "a_name": names_a.name(p.a), "b": p.b, "b_name": names_b.name(p.b), "pixels": p.pixels} for p in found.pairs
    ]
    if as_json:
        images = {"common": found.common, "differing": len(found.differing), "resized": len(found.resized)}
        only = {"only_a": [list(i) for i in found.only_a], "only_b": [list(i) for i in found.only_b]}
        pixels = {"compared": found.pixels, "differing": found.differing_pixels}
        print_json({"images": images | only, "pixels": pixels, "classes": found.classes, "pairs": pairs})
        return
    say(f"{len(found.differing)} of {found.common} common images differ, {len(found.resized)} have another size;")
    share = found.differing_pixels / max(1, found.pixels)
    say(f"{found.differing_pixels:,} of {found.pixels:,} pixels ({share:.2%}), {len(found.classes)} classes")
    for label, images in (("only in the first", found.only_a), ("only in the second", found.only_b)):
        if images:
            first = ", ".join(f"{split} {image_id}" for split, image_id in images[:RANKED])
            say(f"{label}: {len(images)} images: {first}{', ...' if len(images) > RANKED else ''}")
    if pairs:
        say()
        rows = [(f"{p['a']} {p['a_name']}", f"{p['b']} {p['b_name']}", p["pixels"]) for p in pairs[:RANKED]]
        print_table(("first", "second", "pixels"), rows)


def print_explanation(found: "Explanation", as_json: bool) -> None:
    """What ``why`` found: the annotations that cover a pixel, and what was left out of its image."""
    if as_json:
        print_json(found.to_json())
        return
    say(f"{found.split} image {found.image_id}: {found.path}, {found.width} x {found.height} pixels")
    name = f"{found.stored} {found.stored_name}" if found.stored else "unlabelled"
    say(f"x {found.x}, y {found.y}: {name}{'' if found.layers else ': no annotation covers it'}")
    if found.layers:
        say()
        rows = [
            (
                "shows" if layer.shows else "hidden",
                layer.source,
                "-" if layer.annotation_id is None else str(layer.annotation_id),
                f"{layer.category_id} {layer.category}",
                f"{layer.class_id} {layer.class_name}",
                layer.area,
            )
            for layer in found.layers
        ]
        print_table(("", "source", "annotation", "category", "class", "pixels"), rows)
    for fault in found.left_out:
        annotation = "a record" if fault.annotation_id is None else f"annotation {fault.annotation_id}"
        say()
        say(f"left out: {annotation} ({fault.source}), {fault.kind}: {fault.reason}")
