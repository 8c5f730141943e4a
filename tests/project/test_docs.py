"""The documents are true: names, lengths, links and dependencies are those of the code, and the English is plain."""

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from count_lines import ROW, counted
from import_graph import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PYTHON = ("cocolvis", "ess", "cli", "tests", "benchmarks", "tools", "docs")
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".csv", ""}
README = (ROOT / "README.md").read_text()
TOLERANCE = 25
"""Lines by which a file may differ from its length in the README."""


def python_files() -> list[Path]:
    return [path for folder in PYTHON for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_names_a_python_file_that_is_gone(document):
    here = {part for path in python_files() for part in (path.name, path.relative_to(ROOT).as_posix())}
    named = re.findall(r"(?<![\w*/.-])[\w/-]+\.py\b", document.read_text())
    assert {*named} - here == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_names_a_folder_or_module_that_is_gone(document):
    spans = re.findall(r"`((?:cocolvis|ess|cli|tests|benchmarks|tools|docs)/[\w/.-]*)`", document.read_text())
    assert [name for name in spans if not (ROOT / name).exists()] == []
    for name in re.findall(r"`((?:cocolvis|ess|cli)(?:\.\w+)+)[`(]", document.read_text()):
        assert is_there(name.split(".")), f"{document.name}: {name}"


def is_there(parts: list[str]) -> bool:
    """Whether the longest part of a dotted name that is a module or a folder mentions the part after it."""
    for n in range(len(parts), 0, -1):
        path = ROOT / "/".join(parts[:n])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.exists():
            return n == len(parts) or re.search(rf"\b{parts[n]}\b", file.read_text()) is not None
    return False


def test_the_readme_opens_with_three_lines_and_the_two_set_up_commands():
    head = README.splitlines()[:8]
    assert head[0].startswith("# ") and all(head[2:5]) and not head[1] + head[5]
    commands = [line.split()[:2] for line in head if line.startswith("    ")]
    assert commands == [["make", "demo"], ["make", "test"]]


def test_the_readme_describes_every_folder_in_one_line():
    tree = README.split("## Where things are\n\n")[1].split("\n\n")[0].splitlines()
    found, package = [], ""
    for line in tree:
        indented, name, text = re.fullmatch(r"    (  )?(\w+)/ +(.+)", line).groups()
        package = package if indented else name
        found.append(f"{package}/{name}" if indented else name)
        assert (ROOT / found[-1]).is_dir() and text
    rooms = [path for package in ("cocolvis", "ess") for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()]
    assert {room.relative_to(ROOT).as_posix() for room in rooms} <= {*found}
    assert len(found) == len({*found})


def test_the_main_files_to_read_have_the_lengths_that_the_readme_says(tmp_path):
    rows = dict(ROW.findall(README))
    now = dict(ROW.findall(counted(README)))
    assert len(rows) == 6
    assert {name: lines for name, lines in now.items() if abs(int(lines) - int(rows[name])) > TOLERANCE} == {}, (
        "run `make generate`"
    )
    (tmp_path / "a.py").write_text("1\n2\n")
    assert counted("| `a.py` | 7 | text |", tmp_path) == "| `a.py` | 2 | text |"


def test_every_dependency_has_its_reason_and_a_lower_bound():
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Dependencies")[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    for requirement in project["dependencies"] + extras:
        name, bound = re.match(r"([\w-]+)(?:\[[\w,]+\])?(>=\S+)?", requirement).groups()
        if name != project["name"]:
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name
            assert bound, f"{name} has no lower bound"


@cache
def anchors(document: Path) -> set[str]:
    """The anchors of a document: explicit ones, and those that GitHub and mkdocs make of headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
    return made | set(re.findall(r'<a id="([\w-]+)"', text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_inside_the_repository_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"\w+://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name) if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.resolve()), target


def phrases() -> list[str]:
    """The phrases in the first column of the table of CONTRIBUTING.md."""
    rows = re.findall(r"^\|([^|]*)\|", (ROOT / "CONTRIBUTING.md").read_text().split("## Plain English")[1], re.MULTILINE)
    return [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]


def pattern(phrase: str) -> re.Pattern[str]:
    """Finds a phrase in any case, across the line breaks of texts and comments."""
    return re.compile(r"(?<!\w)" + r"(?:\s+(?:#\s*)?)".join(map(re.escape, phrase.split())) + r"(?!\w)", re.IGNORECASE)


def stiff(text: str) -> list[str]:
    """ "line: phrase" for each phrase that a text should not contain."""
    found = [(text[: m.start()].count("\n") + 1, phrase) for phrase in phrases() for m in pattern(phrase).finditer(text)]
    return [f"{line}: {phrase}" for line, phrase in sorted(found)]


def test_stiff_phrases_are_found_across_line_breaks():
    assert "do as well" in phrases() and len(phrases()) > 30
    assert stiff("Zips\ndo as\nwell.") == ["2: do as well"]
    assert stiff("    # zips do\n    # as well") == ["1: do as well"]
    assert stiff("redo as well, do as wells") == []


def test_the_english_is_plain():
    texts = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in SUFFIXES and not path.name.startswith(".git")]
    texts += [path for folder in PYTHON for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in SUFFIXES]
    skipped = {ROOT / "CONTRIBUTING.md", Path(__file__)}
    found = {path: stiff(path.read_text()) for path in texts if path not in skipped and "__pycache__" not in path.parts}
    lines = [f"{path.relative_to(ROOT)}:{where}" for path, places in sorted(found.items()) for where in places]
    assert not lines, "see CONTRIBUTING.md:\n" + "\n".join(lines)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_contains_the_marks_of_a_conflict(document):
    assert re.findall(r"^(?:<{7}|={7}|>{7})(?: .*)?$", document.read_text(), re.MULTILINE) == []


def too_long(text: str) -> list[int]:
    """The numbers of the lines with more than 128 characters, except for rows of tables, pictures and code."""
    prose = re.sub(r"^```.*?^```", lambda code: "\n" * code.group().count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    return [n for n, line in enumerate(prose.split("\n"), 1) if len(line) > 128 and not line.startswith(("|", "!", "    "))]


def test_lines_of_prose_have_at_most_128_characters():
    assert too_long("a" * 129 + "\n| " + "b" * 129 + "\n```\n" + "c" * 129 + "\n```\n" + "d" * 129) == [1, 6]
    written = [document for document in DOCUMENTS if document.name not in ("api.md", "gallery.md")]
    assert {document.name: found for document in written if (found := too_long(document.read_text()))} == {}
