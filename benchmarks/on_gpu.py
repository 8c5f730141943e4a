"""Everything that needs a GPU, in one call: checks, profiles, figures, tests and a short training, the most important first.

    python benchmarks/on_gpu.py [--logs on-gpu] [--only check ...] [--budget 900]

Each part is a command with a limit of its own; what it prints goes to the terminal and to a log, line by line, so that nothing
is lost if the machine goes away. Parts that would begin after the seconds of --budget are left out. The last lines say how each
part ended. The exit code is 1 if one failed or ran out of time. The tests need the packages of `pip install '.[test]'`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import click

ROOT = Path(__file__).parents[1]

_ESS, _COCOLVIS = ([sys.executable, "-c", f"from cli.{name} import main; main()"] for name in ("ess", "cocolvis"))
_SAMPLE, _DATA, _RUN = "sample", "data", "run"


def _benchmark(name: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options]


def _tests(*folders: str) -> list[str]:
    paths = [str(ROOT / "tests" / folder) for folder in folders]
    return [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "not long", "--rootdir", str(ROOT), *paths]


PARTS: dict[str, tuple[int, list[str]]] = {
    "check": (120, _benchmark("gpu", "check")),
    "step": (60, _benchmark("step")),
    "measure": (90, _benchmark("gpu", "measure", "--classes", "1284", "--budget", "45", "--rounds", "3")),
    "tests": (120, _tests("losses", "training", "models")),
    "tiles": (90, _benchmark("tiles", "--budget", "60")),
    "bench": (240, [*_ESS, "bench", "--classes", "1284", "--only", "train", "--only", "predict", "--budget", "180"]),
    "sample": (90, [*_COCOLVIS, "sample", "--out", _SAMPLE, "--images", "120", "--classes", "106"]),
    "build": (60, [*_COCOLVIS, "build", "--coco", f"{_SAMPLE}/coco", "--lvis", f"{_SAMPLE}/lvis", "--out", _DATA]),
    "train": (120, [*_ESS, "train", _DATA, "--out", _RUN, "--preset", "demo", "--steps", "60"]),
}
"""Name -> its limit in seconds, and the command."""


def run(command: list[str], limit: float, log: Path, folder: Path) -> str:
    """Run a command in a folder, with its output in the log; returns "passed", "failed (exit 1)" or "stopped after 60 s"."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    with log.open("wb") as file, subprocess.Popen(command, cwd=folder, env=environment, **settings) as process:
        late = Timer(limit, os.killpg, (process.pid, signal.SIGKILL))  # with all its workers
        late.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                file.flush()
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
            code = process.wait()
        finally:
            late.cancel()
            if process.poll() is None:  # Ctrl-C does not reach the process, which leads a session of its own
                os.killpg(process.pid, signal.SIGKILL)
    if code == -signal.SIGKILL:
        return f"stopped after {limit:.0f} s"
    return f"failed (exit {code})" if code else "passed"


@click.command()
@click.option("--logs", type=click.Path(path_type=Path), default="on-gpu", show_default=True, help="A new folder for the logs.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Run only this part; repeatable.")
@click.option("--budget", default=900.0, show_default=True, help="Seconds after which no part begins.")
def main(logs: Path, only: tuple[str, ...], budget: float) -> None:
    """Run all parts, one after the other."""
    logs.mkdir(parents=True)
    begun, ends = time.monotonic(), {}
    for name, (limit, command) in PARTS.items():
        if only and name not in only:
            continue
        start = time.monotonic()
        left_out = start - begun > budget
        ends[name] = "left out" if left_out else run(command, limit, logs.absolute() / f"{name}.log", logs)
        click.echo(f"=== {name}: {ends[name]} ({time.monotonic() - start:.0f} s)")
    for name, end in ends.items():
        click.echo(f"{name:<10}{end}")
    sys.exit(any(end != "passed" for end in ends.values()))


if __name__ == "__main__":
    main()
