"""Compiles each Triton kernel that training can reach, and reports its registers, spills and shared memory. It needs no GPU.

    python benchmarks/registers.py [--capability 80 ...] [--dim 12 ...] [--json]

Exits with 1 if a kernel spills registers to memory (beyond 64 dimensions: more than 256 bytes), or needs more shared memory
than every GPU since 2020 has. The functions that launch the kernels get tensors without memory, as large as in training. Their
launches are recorded, and compiled with the same types, constants and alignments as on a GPU.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ess.kernels.distances import COSINE, DISTANCES, EUCLIDEAN
from ess.kernels.gpu import candidates, exact, search

KERNELS = {exact: ("by_pixel", "by_class"), candidates: ("by_pixel",), search: ("_nearest",)}
"""The modules that launch kernels, and the names by which they call them."""

SHARED = 99 << 10
"""The bytes of shared memory that a program may use on every GPU since 2020: those of sm_86 and sm_89, the smallest."""

LONG, SPILLED = 64, 256
"""Longer embeddings may spill this many bytes: as factors of a product, split into two parts, they take 128 registers alone."""

CAPABILITIES, DIMS = (80, 90), (12, 32, 64, 128)

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64", torch.int32: "i32"}


class Launch(NamedTuple):
    """A call of a kernel for a ``grid`` of programs; ``name`` says from where."""

    name: str
    kernel: triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class Used(NamedTuple):
    """The registers of a thread, the bytes of them that it spills, and the bytes of shared memory of a program."""

    registers: int
    spilled: int
    shared: int

    def fits(self, dim: int) -> bool:
        """Whether this is good enough for embeddings of this length."""
        return self.spilled <= (0 if dim <= LONG else SPILLED) and self.shared <= SHARED


class _Recorder:
    """Takes the place of a kernel, and keeps its launches instead of making them."""

    def __init__(self, name: str, kernel: triton.JITFunction, launches: list[Launch]):
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid):
        return lambda **arguments: self.launches.append(Launch(self.name, self.kernel, grid, arguments))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches made in this context, none of which reaches a GPU."""
    launches: list[Launch] = []
    with ExitStack() as stack:
        for module, names in KERNELS.items():
            for name in names:
                label = f"{module.__name__.rpartition('.')[2]}.{name.removeprefix('_')}"
                stack.enter_context(patch.object(module, name, _Recorder(label, getattr(module, name), launches)))
        yield launches


def launches_of(
    dim: int, distance: int, dtype: torch.dtype = torch.float32, images: int = 8, pixels: int = 512 * 512
) -> list[Launch]:
    """What the losses and predictions launch for ``images`` of so many ``pixels`` and 1284 classes, with all their options.

    Embeddings have their channels last in memory, as in training on a GPU.
    """
    o = torch.empty(images, pixels, dim, dtype=dtype, device="meta").transpose(1, 2)
    labels = torch.empty(images, pixels, dtype=torch.int64, device="meta")
    e, weights = torch.empty(1284, dim, dtype=dtype, device="meta"), torch.empty(labels.shape, device="meta")
    masks = torch.empty(images, 1284, dtype=torch.bool, device="meta")
    how = {"temperature": 20.0, "distance": distance}
    with recorded() as launches:
        for bias, mask, gradients in ((None, None, True), (e[:, 0], None, True), (None, masks, True), (None, None, False)):
            exact.exact(o, labels, weights, e, bias, mask, ignore_index=-1, gradients=gradients, **how)
        ids = search.candidates(o, labels, e, 7, products=distance == COSINE)
        candidates.losses(o, e, ids, **how)
        candidates.gradients(o, e, ids, weights.flatten(), **how)
        for bias in (None, e[:, 0]):
            search.search(o[0].T, e, 1, products=distance == COSINE, bias=bias, roots=distance == EUCLIDEAN)
    return launches


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel, specialised as when it is launched: integers that are 1, and whether 16 divides others, are known."""
    signature, constants, attributes = {}, {}, {}
    options = {name: value for name, value in launch.arguments.items() if name not in launch.kernel.arg_names}
    for index, parameter in enumerate(launch.kernel.params):
        value, divisible = launch.arguments[parameter.name], False
        if isinstance(value, torch.Tensor):
            kind = f"*{TYPES[value.dtype]}"
            divisible = value.storage_offset() * value.element_size() % 16 == 0
        elif parameter.is_constexpr or (isinstance(value, int) and value == 1):
            kind, constants[parameter.name] = "constexpr", value
        else:
            kind = "fp32" if isinstance(value, float) else "i32" if value < 2**31 else "i64"
            divisible = isinstance(value, int) and value % 16 == 0
        signature[parameter.name] = kind
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def used(launch: Launch, capability: int) -> Used:
    """What the compiled kernel of a launch uses."""
    kernel = compiled(launch, capability)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        text = subprocess.run([tool, "--dump-resource-usage", file], check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", text)}
    return Used(found["REG"], found["STACK"], kernel.metadata.shared)  # these kernels have nothing else on their stack


def described(launch: Launch) -> str:
    """The kernel and its options, in words."""
    options = [name.lower() for name in ("GRADIENTS", "BIAS", "BIASED", "EXCLUDES") if launch.arguments.get(name)]
    return " ".join([launch.name, *options])


def rows_of(capability: int, dim: int, distance: int) -> list[dict[str, Any]]:
    """The figures of each different kernel for embeddings of one length."""
    different = {described(launch): launch for launch in launches_of(dim, distance)}
    about = {"distance": DISTANCES[distance], "dim": dim, "capability": capability}
    found = {name: used(launch, capability) for name, launch in different.items()}
    return [{"kernel": name} | about | used._asdict() | {"fits": used.fits(dim)} for name, used in found.items()]


def processes(most: int = 1 << 10) -> ProcessPoolExecutor:
    """As many processes as there are cores, at most so many; they import this module once, which takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(min(most, os.cpu_count() or 1), context)


def all_rows(capabilities: tuple[int, ...], dims: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """All figures as they come, computed by as many processes as there are cores."""
    parts = [(capability, dim, distance) for capability in capabilities for dim in dims for distance in range(len(DISTANCES))]
    with processes(len(parts)) as pool:
        for rows in pool.map(rows_of, *zip(*parts, strict=True)):
            yield from rows


@click.command()
@click.option("--capability", "capabilities", multiple=True, default=CAPABILITIES, show_default=True, help="80 is sm_80.")
@click.option("--dim", "dims", multiple=True, default=DIMS, show_default=True, help="Dimensions of an embedding, repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(capabilities: tuple[int, ...], dims: tuple[int, ...], as_json: bool) -> None:
    """Report what the kernels use."""
    rows = []
    for row in all_rows(capabilities, dims):
        rows.append(row)
        if not as_json:
            print(line_of(row), flush=True)
    if as_json:
        print(json.dumps(rows, indent=1))
    sys.exit(0 if all(row["fits"] for row in rows) else 1)


def line_of(row: dict[str, Any]) -> str:
    """A row as a line of text."""
    about = f"sm_{row['capability']}  d = {row['dim']:<4} {row['distance']:<10} {row['kernel']:<36}"
    return f"{about} {row['registers']:>4} registers {row['spilled']:>6} B spilled {row['shared'] >> 10:>4} KiB shared"


if __name__ == "__main__":
    main()
