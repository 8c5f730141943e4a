"""Where a training step goes: its time, that of the host alone, and the kernels that take longest, by PyTorch's profiler.

    python benchmarks/step.py [--dim 64 ...] [--loss auto ...] [--classes 1284] [--batch-size 8] [--crop 512] [--compile]

The step is that of ``ess bench``: DeepLabV3+ with ResNet-50 on a batch of noise that is on the device already, with the
settings that `ess train` has on this device. "busy" is the sum of the kernels' times on a GPU; what a step takes beyond it, the
GPU waits for the host. Without a GPU, operators of PyTorch take the place of kernels.
"""

import json
import time
from itertools import product
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from ess.bench.steps import Case, turn_of
from ess.config import Config
from ess.device import choose_device
from ess.models.build import model_from_config
from ess.training import machine

SHOWN = 20
"""The kernels that are shown."""


def wait(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(case: Case, device: torch.device, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, of the host alone and of the kernels; launches; peak GiB; and (name, ms, calls) of kernels."""
    torch.manual_seed(0)
    config = machine.resolved(case.settings(), device)
    model = model_from_config(config, case.classes, weights=None)
    with machine.switched(machine.in_force(config, device)):
        turn = turn_of(case, model, config, device)
        for _ in range(3):
            turn()
        wait(device)
        begun = time.perf_counter()
        for _ in range(steps):
            turn()
        issued = time.perf_counter() - begun
        wait(device)
        taken = time.perf_counter() - begun
        gpu = device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])], acc_events=True) as profiled:
            for _ in range(steps):
                turn()
            wait(device)
    kind = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    rows = [row for row in profiled.key_averages() if row.device_type == kind]
    spent = {row.key: row.self_device_time_total if gpu else row.self_cpu_time_total for row in rows}
    kernels = sorted(rows, key=lambda row: -spent[row.key])
    return {
        "ms": 1e3 * taken / steps,
        "host_ms": 1e3 * issued / steps,
        "busy_ms": sum(spent.values()) / 1e3 / steps,
        "launches": sum(row.count for row in rows) / steps,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if gpu else None,
        "kernels": [(row.key, spent[row.key] / 1e3 / steps, row.count / steps) for row in kernels[:SHOWN]],
    }


@click.command()
@click.option("--dim", "dims", multiple=True, default=(64, 12), show_default=True, help="Dimensions of an embedding.")
@click.option("--loss", "losses", multiple=True, default=("auto",), show_default=True, help="As for ess train, repeatable.")
@click.option("--encoder", default="resnet50", show_default=True)
@click.option("--classes", default=1284, show_default=True)
@click.option("--batch-size", default=8, show_default=True)
@click.option("--crop", default=512, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="As for ess train.")
@click.option("--device", "name", default="auto", show_default=True)
@click.option("--steps", default=5, show_default=True, help="Steps of which the mean is shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(dims, losses, encoder, classes, batch_size, crop, compiled, name, steps, as_json) -> None:
    """Profile training steps."""
    device, found = choose_device(name), []
    for loss, dim in product(losses, dims):
        case = Case(
            what="train",
            contestant="dense" if loss == "dense" else "ours",
            classes=classes,
            height=crop,
            width=crop,
            batch_size=batch_size,
            config=Config(loss=loss, dim=dim, encoder=encoder, compile=compiled, device=name),
            seconds=0,
        )
        row = measured(case, device, steps)
        found.append({"loss": loss, "dim": dim, **row})
        if as_json:
            continue
        peak = "" if row["peak_gib"] is None else f", peak {row['peak_gib']:.2f} GiB"
        print(
            f"\n{loss} loss, d = {dim}, {batch_size} x {crop} x {crop}, {classes} classes: {row['ms']:.2f} ms a step,"
            f" host {row['host_ms']:.2f} ms, busy {row['busy_ms']:.2f} ms, {row['launches']:.0f} launches{peak}",
            flush=True,
        )
        for kernel, ms, calls in row["kernels"]:
            print(f"{ms:>10.3f} ms {calls:>6.0f} x  {kernel[:100]}")
    if as_json:
        print(json.dumps({"device": machine.describe(device), "torch": torch.__version__, "steps": found}, indent=1))


if __name__ == "__main__":
    main()
