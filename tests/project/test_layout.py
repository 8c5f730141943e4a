"""Imports between folders run one way, and the picture of the folders shows the imports as they are."""

from collections import Counter
from graphlib import CycleError, TopologicalSorter

import draw_imports
import pytest
from import_graph import ROOT, folders, imports, modules

MOST = 12
"""Modules that a folder may hold."""


def ordered(graph: dict[str, set[str]]) -> list[str]:
    """The nodes, each after all that it imports; fails and shows the circle if there is one."""
    try:
        return [*TopologicalSorter(graph).static_order()]
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' -> '.join(error.args[1])}")


def test_no_module_imports_itself_by_way_of_others():
    assert set(ordered(imports())) == set(modules())


def test_imports_between_folders_run_one_way():
    order = ordered(folders())
    assert {"cocolvis", "ess", "ess/kernels", "cocolvis/building", "cli"} <= set(order)


FOR_TYPES = "if TYPE_CHECKING:\n    from cocolvis.building import build"


@pytest.mark.parametrize("added", ["import cocolvis.building.build", FOR_TYPES])
def test_an_import_against_the_direction_is_found(tmp_path, added):
    for name, path in modules().items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + (f"\n{added}\n" if name == "cocolvis.disk.files" else ""))
    assert "cocolvis/building" in folders(tmp_path)["cocolvis/disk"]
    for graph in (imports(tmp_path), folders(tmp_path)):
        with pytest.raises(pytest.fail.Exception, match="in a circle"):
            ordered(graph)


def test_the_picture_shows_the_imports_as_they_are(tmp_path):
    draw_imports.main(tmp_path / "now.svg")
    assert (tmp_path / "now.svg").read_text() == draw_imports.PICTURE.read_text(), "run `make generate`"


def test_the_picture_leaves_out_what_follows_from_other_imports():
    graph = {"cli": {"ess", "cocolvis"}, "ess": {"cocolvis"}, "cocolvis": set(), "import ess": {"ess"}}
    assert draw_imports.reduced(draw_imports.library(graph)) == {"cli": {"ess"}, "ess": {"cocolvis"}, "cocolvis": set()}
    picture = draw_imports.draw(graph)
    assert picture.count("<path d=") == 1 + 2 and picture.count("<text") == 3  # the arrow's tip, two arrows, three boxes


def test_a_relative_import_is_refused(tmp_path):
    (tmp_path / "ess").mkdir()
    (tmp_path / "ess" / "here.py").write_text("from . import there")
    with pytest.raises(ValueError, match=r"here\.py: line 1 is a relative import"):
        imports(tmp_path)


def test_no_folder_is_crowded():
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    held = Counter(path.parent.relative_to(ROOT) for path in (*modules().values(), *tests) if path.name != "__init__.py")
    assert {folder: count for folder, count in held.items() if count > MOST} == {}
