"""Text files that users edited: byte order marks and Windows line ends do no harm; other encodings are named."""

import codecs
import json
import unicodedata

import pytest
from click.testing import CliRunner
from import_trees import cocostuff10k, folder_of_export, voc

from cli.ess import main as ess
from cocolvis.disk.archives import Place
from cocolvis.disk.files import create_json, read_json, read_lines, read_text, write_json
from cocolvis.errors import DataError
from cocolvis.importers import cocostuff10k as coco_layout
from cocolvis.importers import folder as own_layout
from cocolvis.importers import voc as voc_layout
from cocolvis.sources import annotations
from cocolvis.sources.annotations import AnnotationFile
from cocolvis.storage.index import read_index
from cocolvis.text import decoded, nfc, one_line
from cocolvis.vocabulary import ClassInfo, Vocabulary, coco_lvis
from ess.config import load
from ess.inference.inputs import find_inputs, read_list

MARK = codecs.BOM_UTF8
UTF16 = ("utf-16", "utf-16-le", "utf-16-be")
SPLITS = ("train", "val")


def rewritten(path, change):
    path.write_bytes(change(path.read_bytes()))


def windows(content):
    """The same text as Notepad saves it."""
    return MARK + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@pytest.mark.parametrize("content", [b"a\nb", MARK + b"a\nb", b"a\r\nb", MARK + b"a\r\nb", b"a\rb"])
def test_marks_and_line_ends_do_no_harm(content, tmp_path):
    assert decoded(content, "it") == "a\nb"
    (tmp_path / "it").write_bytes(content + b"\r\n\r\n")
    assert read_text(tmp_path / "it") == "a\nb\n\n" and read_lines(tmp_path / "it") == ["a", "b"]


def test_an_empty_file_has_no_lines(tmp_path):
    for content in (b"", MARK, b"\r\n"):
        (tmp_path / "it").write_bytes(content)
        assert read_lines(tmp_path / "it") == []


@pytest.mark.parametrize("text", ["steps = 8\n", '["sky", "hill"]', "Bäume\nWiese\n", "天空\n草地\n一\n", "a"])
@pytest.mark.parametrize("encoding", [*UTF16, "utf-16-be with mark", "utf-32"])
def test_utf16_is_named(text, encoding):
    name, _, mark = encoding.partition(" ")
    content = (codecs.BOM_UTF16_BE if mark else b"") + text.encode(name)
    with pytest.raises(DataError, match=f"^it: is {encoding[:6].upper()}; save it as UTF-8$"):
        decoded(content, "it")


@pytest.mark.parametrize("text", ["天空\n草地\n", "Bäume", "\u0100\u4e00", "", "a" * 5000])
def test_utf8_is_not_mistaken_for_utf16(text):
    assert decoded(text.encode(), "it") == text
    AnnotationFile(json.dumps({"images": [], "annotations": [], "info": text}, ensure_ascii=False).encode(), "it", "lvis")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"sky\nm\xe4hre\n", "line 2, byte 2: 0xe4 is not UTF-8; save it as UTF-8"),
        (MARK + b"sky\r\n\r\n\xc3\xa4\xff", "line 3, byte 3: 0xff is not UTF-8; save it as UTF-8"),
        (b"a\rb\xe4", "line 2, byte 2: 0xe4 is not UTF-8; save it as UTF-8"),
        (b"sky\nhi\0ll and much more\n", "line 2 contains a NUL; expected text in UTF-8"),
    ],
)
def test_bytes_that_are_not_text_are_reported_with_their_position(content, told):
    with pytest.raises(DataError) as error:
        decoded(content, "it")
    assert str(error.value) == f"it: {told}"


def test_the_first_line_of_a_message_is_the_first_that_says_something():
    assert one_line(ValueError("\n \r\nno such key\nat 0x1")) == "no such key"
    assert one_line(ValueError("\n \n")) == one_line(ValueError()) == "ValueError"


def test_settings(tmp_path):
    file = tmp_path / "c.toml"
    file.write_bytes(windows(b"# mine\nsteps = 7\n"))
    assert load(None, file).steps == 7
    file.write_bytes("steps = 7\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"c\.toml: is UTF-16; save it as UTF-8"):
        load(None, file)
    file.write_bytes(b"# \xe4\nsteps = 7\n")
    with pytest.raises(DataError, match=r"c\.toml: line 1, byte 3: 0xe4 is not UTF-8"):
        load(None, file)


@pytest.mark.parametrize("name", ["classes.txt", "classes.csv", "classes.json"])
def test_lists_of_classes(name, tmp_path):
    made = folder_of_export(tmp_path)
    (made.src / "classes.csv").unlink()
    text = {"classes.txt": "sky\nhill\nBäume\n", "classes.csv": "name\nsky\nhill\nBäume\n"}
    file = made.src / name
    file.write_text(text.get(name, json.dumps(["sky", "hill", "Bäume"], ensure_ascii=False)))
    plain = own_layout.find(made.src, SPLITS).vocabulary
    rewritten(file, windows)
    assert own_layout.find(made.src, SPLITS).vocabulary.digest == plain.digest
    file.write_text(unicodedata.normalize("NFD", file.read_text("utf-8-sig")))
    assert own_layout.find(made.src, SPLITS).vocabulary.digest == plain.digest
    assert [c.name for c in plain] == ["sky", "hill", "Bäume"]
    file.write_bytes(file.read_text().encode("utf-16-le"))
    with pytest.raises(DataError, match=f"{name}: is UTF-16; save it as UTF-8"):
        own_layout.find(made.src, SPLITS)


def test_a_line_separator_inside_a_name_does_not_make_a_second_class(tmp_path):
    made = folder_of_export(tmp_path)
    (made.src / "classes.csv").unlink()
    (made.src / "classes.txt").write_text("sky\u2028hill\nsea\nsand\n")
    with pytest.raises(DataError, match="class 1 has name"):
        own_layout.find(made.src, SPLITS)


def test_a_malformed_class_table_is_refused(tmp_path):
    made = folder_of_export(tmp_path)
    (made.src / "classes.csv").write_text("name\n" + "a" * 200_000)
    with pytest.raises(DataError, match=r"classes\.csv: cannot be read as CSV: field larger"):
        own_layout.find(made.src, SPLITS)


@pytest.mark.parametrize(
    ("make", "layout", "names"),
    [
        (voc, voc_layout, "VOC2012/ImageSets/Segmentation/train.txt"),
        (cocostuff10k, coco_layout, "imageLists/train.txt"),
    ],
)
def test_lists_of_images(make, layout, names, tmp_path):
    made = make(tmp_path)
    plain = layout.find(made.src, ("train",)).images
    rewritten(made.src / names, windows)
    tree = layout.find(made.src, ("train",))
    assert tree.images == plain and tree.findings.faults == []
    rewritten(made.src / names, lambda content: content.decode("utf-8-sig").encode("utf-16-le"))
    with pytest.raises(DataError, match=r"train\.txt: is UTF-16; save it as UTF-8"):
        layout.find(made.src, ("train",))


def test_json_and_the_index(tmp_path, sample):
    index = (sample.data / "dataset.json").read_bytes()
    file = tmp_path / "dataset.json"
    file.write_bytes(windows(index))
    assert read_json(file) == read_index(file) == json.loads(index)
    file.write_bytes(index.decode().encode("utf-16"))
    for read in (read_json, read_index):
        with pytest.raises(DataError, match=r"dataset\.json: is UTF-16; save it as UTF-8"):
            read(file)


def test_lone_surrogates_are_written_to_json_as_escapes(tmp_path):
    content = {"name \udcff": ["é", "\ud800.jpg", "\U0001f600"]}
    write_json(tmp_path / "a.json", content)
    assert create_json(tmp_path / "b.json", content)
    for name in ("a.json", "b.json"):
        assert read_json(tmp_path / name) == content
        assert "é" in (tmp_path / name).read_text("utf-8") and r"\ud800.jpg" in (tmp_path / name).read_text("utf-8")


ONE = b'{"images": [{"id": 5, "height": 4, "width": 4, "file_name": "x/5.jpg"}], "annotations": [{"id": 1, "image_id": 5,'
ONE += b' "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4]]}]%s}'


@pytest.mark.parametrize("more", [b"", b', "info": NaN'], ids=["typed", "record by record"])
def test_annotations_with_a_byte_order_mark_are_read_without_a_copy(more, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        annotations, "without_mark", lambda content, real=annotations.without_mark: seen.append(real(content)) or seen[0]
    )
    (tmp_path / "a.json").write_bytes(windows(ONE % more))
    content = Place(str(tmp_path / "a.json")).map()
    file = AnnotationFile(content, "a.json", "lvis")
    (segment,) = file.segments(5)
    assert json.loads(bytes(segment.segmentation)) == [[0, 0, 4, 0, 4, 4]] and file.faults == []
    assert isinstance(seen[0], memoryview) and seen[0].obj is content


@pytest.mark.parametrize("encoding", UTF16)
def test_annotations_in_utf16_are_named(encoding):
    with pytest.raises(DataError, match=r"^a\.json: is UTF-16; save it as UTF-8$"):
        AnnotationFile((ONE % b"").decode().encode(encoding), "a.json", "lvis")


def test_a_build_from_files_with_byte_order_marks(tree):
    tree.image(1)
    tree.thing(1, 7, [[0, 0, 4, 0, 4, 4, 0, 4]])
    plain = tree.build("plain").index
    for name in ("stuff_train2017", "lvis_v1_train"):
        rewritten(tree.path(name), windows)
    tree.write = lambda: tree
    marked = tree.build("marked").index
    assert marked["digest"] == plain["digest"] and marked["inputs"] != plain["inputs"]


def test_a_list_of_paths_on_stdin(tmp_path):
    assert read_list(windows(b"a.jpg\n\nb c.jpg\n")) == ["a.jpg", "b c.jpg"]
    assert read_list(b"\xff.jpg\n") == ["\udcff.jpg"]
    for content, told in (
        ("a.jpg\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"a.jpg\0b/c d.jpg\0", "line 1 contains a NUL"),
        (b"\xef\xbb\xbf\r\n \r\n", "is empty; expected one path per line"),
    ):
        result = CliRunner().invoke(ess, ["predict", str(tmp_path / "run"), "-", "--out", str(tmp_path / "out")], input=content)
        assert result.exit_code == 1 and result.stderr.startswith(f"Error: the list of paths: {told}")


def test_names_match_in_any_unicode_normal_form(tmp_path):
    joined, apart = (unicodedata.normalize(form, "Übung é") for form in ("NFC", "NFD"))
    assert joined != apart and nfc(apart) == nfc(joined) == joined
    vocabulary = Vocabulary([ClassInfo(1, apart, "stuff", None, None, {"lvis": 4})])
    assert vocabulary.id_of(joined) == vocabulary.id_of(apart) == 1
    assert vocabulary.search(joined.upper()) == vocabulary.search(apart) == [*vocabulary]
    vocabulary.check_categories("lvis", {4: joined}, "a.json")
    with pytest.raises(DataError, match="unique"):
        Vocabulary([ClassInfo(i, name, "stuff", None, None, {}) for i, name in ((1, apart), (2, joined))])
    with pytest.raises(DataError, match="category 9 is 'x', the vocabulary has no category of this id;"):
        vocabulary.check_categories("lvis", {9: "x"}, "a.json")
    assert coco_lvis().id_of("banner") == 50
    (tmp_path / apart / "x").mkdir(parents=True)
    (tmp_path / apart / "x" / f"{joined}.jpg").write_bytes(b"")
    (one,) = find_inputs([str(tmp_path / joined / "x" / f"{apart}.jpg")])
    assert one.path == tmp_path / apart / "x" / f"{joined}.jpg"
    assert [one.name.name for one in find_inputs([str(tmp_path / joined / "**" / f"{apart[:2]}*.jpg")])] == [joined]
