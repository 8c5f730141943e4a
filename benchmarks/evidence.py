"""Which settings of the loss give the best models with many classes: three tables, measured on two cores.

    python benchmarks/evidence.py real --coco DIR --lvis DIR --weights FILE [--out FOLDER]
    python benchmarks/evidence.py longtail [--rows NAME ...] [--seeds N] [--out FOLDER]
    python benchmarks/evidence.py scale --weights FILE [--out FOLDER]

"real" is a 4-fold cross validation over real pictures: a linear layer on frozen features of an encoder trained on ImageNet.
"longtail" trains a small network from scratch on generated pictures with a long tail. "scale" fine-tunes an encoder that was
trained on ImageNet, on generated pictures with 100 to 10,000 classes. The learning rate of each loss is chosen on pictures of
the training part, and the held-out pictures are used once, for the scores. Differences are paired over pictures; "=" marks
those whose 95 % interval includes 0.

Every run is a process of its own and leaves one file. With --parallel 2, two of them run at a time on half of the cores each,
which takes less time in all. The same command continues after an interruption, runs what is missing, and prints the table.
--show prints what is finished. --trial makes two steps of each run, to see that everything works.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
from tables import plots, scores
from tables.data import Inputs, prepare
from tables.jobs import Job, NotChosen, Processes, Store, candidates, chosen_rate, evaluations, settings_of, shortened
from tables.rows import TABLES, Row, Table

from cocolvis.disk.files import read_json, write_aside, write_json
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Plan:
    """A table with the rows that were requested, where its results are, and what its data sets are made from.

    ``against`` is the row that all others are compared with; by default, the table says which.
    """

    table: Table
    rows: tuple[Row, ...]
    seeds: int
    store: Store
    inputs: Inputs
    against: str | None = None

    def jobs(self) -> tuple[list[Job], list[Job]]:
        """The jobs that choose learning rates, and those that need them."""
        return candidates(self.table, self.rows), evaluations(self.table, self.rows, self.seeds)

    def identity(self, job: Job) -> dict[str, Any]:
        """What decides the result of a job: its settings, except those that depend on the machine, and its inputs."""
        return {
            "settings": settings_of(self.table, self.store, job),
            "data": self.dataset(job.part).index["digest"],
            "weights": self.inputs.weights_digest(self.table.name),
        }

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The result of a job, unless it is missing or of another identity, or its rate is neither given nor chosen."""
        result = self.store.result(job)
        try:
            known = result is not None and all(result[name] == value for name, value in self.identity(job).items())
        except NotChosen:
            return None
        return result if known else None

    def dataset(self, part: str) -> Dataset:
        """The data set of a part."""
        return Dataset.open(self.store.data / part)


def run_all(plan: Plan, arguments: Sequence[str], parallel: int) -> None:
    """Build the data sets and run every job that is not finished, each in a process that holds the lock too."""
    with plan.store.locked() as lock:
        prepare(plan.table.name, plan.table.parts, plan.inputs, plan.store.data)
        choices, scored = plan.jobs()
        total = len(choices) + len(scored)
        with Processes(lock, parallel) as processes:
            for number, job in enumerate(choices + scored, 1):
                if number == len(choices) + 1:
                    processes.wait()  # until all learning rates are chosen
                if plan.finished(job) is None:
                    start(processes, arguments, job, f"{number}/{total} {job.name}")
            processes.wait()


def start(processes: Processes, arguments: Sequence[str], job: Job, label: str) -> None:
    """Start a job as soon as a process is free, and print how long it takes."""

    def ended(code: int) -> None:
        if code:
            raise DataError(f"{job.name} ended with exit code {code}; run the same command to continue")
        say(f"{label} took {timedelta(seconds=round(time.monotonic() - began))}")

    processes.run([__file__, *arguments, "--job", json.dumps(asdict(job))], ended)
    began = time.monotonic()
    say(label)


def run_one(plan: Plan, job: Job) -> None:
    """Run a job in this process and write its result."""
    from tables.training import trained_and_scored

    from ess.config import Config
    from ess.training.step import NotFinite

    identity, running = plan.identity(job), plan.store.running(job)
    begin(running, identity)
    rates = None if job.rate is not None else chosen_rate(plan.table, plan.store, plan.table.row(job.row))[1]
    config = Config(**identity["settings"] | plan.inputs.local_settings(plan.table.name))
    cache = plan.store.folder / "features" if config.encoder_lr == 0 else None
    try:
        result = trained_and_scored(plan.dataset(job.part), running, config, job.split, show_progress(job.name), cache)
    except NotFinite as error:
        if job.rate is None:
            raise
        result = {"scores": {"miou": None}, "diverged": str(error)}  # this learning rate is too high
    plan.store.finish(job, {**asdict(job), **identity, "rates": rates, **result})
    shutil.rmtree(running)


def begin(running: Path, identity: dict[str, Any]) -> None:
    """Remove an unfinished run unless it has this identity, and record the identity."""
    record = running / "identity.json"
    if not record.exists() or read_json(record) != json.loads(json.dumps(identity)):
        shutil.rmtree(running, ignore_errors=True)
        write_json(record, identity)


def report(plan: Plan) -> dict[str, Any]:
    """The table from the finished jobs, also written to the folder as JSON and as Markdown."""
    parts = [plan.table.parts] if plan.table.pooled else [(part,) for part in plan.table.parts]
    sections = {" ".join(each): section(plan, each) for each in parts}
    sections = {name: each for name, each in sections.items() if each["rows"]}
    found = {"table": plan.table.name, "sections": sections}
    write_json(plan.store.folder / f"{plan.table.name}.json", found)
    text = "\n".join(f"{heading(name, each)}\n\n{scores.markdown(each['rows'])}" for name, each in sections.items())
    with write_aside(plan.store.folder / f"{plan.table.name}.md") as aside:
        aside.write_text(text, encoding="utf-8")
    if not plan.table.pooled and sections:
        plots.draw_scale(sections, plan.store.folder / f"{plan.table.name}.svg")
    return found | {"markdown": text}


def section(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """The finished rows over some parts together, requested or not, with the facts about their data and machine."""
    results = {}
    for row in plan.table.rows:
        wanted = [job for job in evaluations(plan.table, [row], plan.seeds) if job.part in parts]
        found = [plan.finished(job) for job in wanted]
        if found and None not in found:
            results[row.name] = [result for result in found if result is not None]
    if not results:
        return {"rows": []}
    datasets = [plan.dataset(part) for part in parts]
    groups = scores.groups_of(datasets, terciles=plan.table.name == "real")
    against = {row.name: plan.against or row.against for row in plan.table.rows}
    every = [result for found in results.values() for result in found]
    pixels = scores.training_pixels(datasets)
    return {
        "classes": len(datasets[0].vocabulary),
        "trained_classes": int(np.count_nonzero(pixels)),
        "gini": scores.gini(pixels[pixels > 0]),
        "digests": [dataset.index["digest"] for dataset in datasets],
        "machines": distinct([result["machine"] for result in every]),
        "versions": distinct([result["versions"] for result in every]),
        "rates": {name: found[0]["rates"] for name, found in results.items()},
        "rows": scores.summary(results, against, groups),
    }


def heading(name: str, found: dict[str, Any]) -> str:
    """One line about the data and the machine of a section."""
    machine = found["machines"][0]
    return (
        f"{name}: {found['trained_classes']:,} of {found['classes']:,} classes in the training pictures,"
        f" Gini coefficient of their pixels {found['gini']:.2f};"
        f" {machine['threads']} of {machine['cores']} cores of {machine['processor']}, torch {found['versions'][0]['torch']}"
    )


def distinct(values: Sequence[Any]) -> list[Any]:
    """The different values, in order."""
    return [value for number, value in enumerate(values) if value not in values[:number]]


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def show_progress(name: str) -> Callable[[int, int], None]:
    """A progress callback that prints each tenth of the pictures."""

    def show(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            say(f"{name}: scored {done}/{total} pictures")

    return show


def chosen_rows(table: Table, names: Sequence[str], option: str = "--rows") -> tuple[Row, ...]:
    """The rows of these names in the order of the table; by default all that need no request."""
    known = [row.name for row in table.rows]
    for name in names:
        if name not in known:
            raise DataError(f"{option} {name}: the rows of {table.name} are {', '.join(known)}")
    wanted = set(names) or {row.name for row in table.rows if not row.only_on_request}
    return tuple(row for row in table.rows if row.name in wanted)


def with_rates(table: Table, pairs: Sequence[str]) -> Table:
    """The table with given learning rates; each pair is "ROW=RATE", and holds for the family of the row."""
    given = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        (row,) = chosen_rows(table, [name], "--rate")
        try:
            rate = float(text)
        except ValueError:
            raise DataError(f"--rate {pair}: expected NAME=RATE, for example dense=0.01") from None
        if given.setdefault(row.family, rate) != rate:
            raise DataError(f"--rate {pair}: another rate is given for this family of rows")
    return replace(table, given=given)


@click.command()
@click.argument("name", metavar="TABLE", type=click.Choice([*TABLES]))
@click.option("--rows", "given", multiple=True, help="Run only these: NAME[,NAME...]; may be repeated.")
@click.option("--rate", "rates", multiple=True, help="NAME=RATE: do not choose the learning rate of this row.")
@click.option("--seeds", type=click.IntRange(1), help="Seeds of each row.  [default: 3 for longtail, otherwise 1]")
@click.option("--parallel", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time; they share the cores.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/evidence"), show_default=True, help="Results.")
@click.option("--coco", type=click.Path(path_type=Path), help="For real: COCO.  [default: $COCOLVIS_REAL_DATA/coco]")
@click.option("--lvis", type=click.Path(path_type=Path), help="For real: LVIS.  [default: $COCOLVIS_REAL_DATA/lvis]")
@click.option("--weights", type=click.Path(path_type=Path), help="For real and scale.  [default: $COCOLVIS_REAL_WEIGHTS]")
@click.option("--against", metavar="NAME", help="Compare all rows with this one.")
@click.option("--show", is_flag=True, help="Print what is finished; run nothing.")
@click.option("--trial", is_flag=True, help="Two steps of each run, on two parts, in a folder of their own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--job", hidden=True)
def main(name, given, rates, seeds, parallel, out, coco, lvis, weights, against, show, trial, as_json, job) -> None:
    """Measure one of the tables: real, longtail or scale."""
    table = shortened(TABLES[name]) if trial else TABLES[name]
    try:
        table = with_rates(table, rates)
        store = Store((out / "trial" if trial else out).absolute() / name)
        inputs = Inputs.from_environment(coco, lvis, weights)
        plan = Plan(
            table,
            chosen_rows(table, [each for text in given for each in text.split(",")]),
            seeds or (1 if trial else table.seeds),
            store,
            inputs,
            chosen_rows(table, [against], "--against")[0].name if against else None,
        )
        if job:
            run_one(plan, Job(**json.loads(job)))
            return
        if not show:
            run_all(plan, sys.argv[1:], parallel)
        found = report(plan)
    except DataError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        if job is None:
            say("interrupted; finished runs and the steps of this one are kept, and the same command continues")
        sys.exit(130)
    print(json.dumps(found, indent=1) if as_json else found["markdown"])


if __name__ == "__main__":
    main()
