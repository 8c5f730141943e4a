"""The picture of the table "scale"."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocolvis.disk.files import save_figure

_PANELS = {
    "mIoU": lambda row: row["miou"]["all"]["value"],
    "seconds per step": lambda row: row["seconds_per_step"],
    "peak memory, GiB": lambda row: row["peak_bytes"] / 2**30,
}


def draw_scale(sections: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw mIoU, time and memory of each row against the number of classes; ``sections`` are those of the table."""
    from matplotlib.figure import Figure

    names = dict.fromkeys(row["row"] for section in sections.values() for row in section["rows"])
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, (label, value) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for name in names:
            points = [
                (section["classes"], value(row))
                for section in sections.values()
                for row in section["rows"]
                if row["row"] == name and row["miou"]["all"]
            ]
            axes.plot(*zip(*points, strict=True), "o-", label=name)
        axes.set(xscale="log", xlabel="classes", title=label)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if label == "seconds per step":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_figure(figure, path)
