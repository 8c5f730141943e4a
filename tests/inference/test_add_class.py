"""Classes added without training: found in similar pictures without changing anything else, and stored in the run's folder."""

import json
import shutil
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from cli.ess import main
from cocolvis.disk.files import sha256
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import Vocabulary, coco_lvis
from ess.checkpoint import Run
from ess.config import Config
from ess.data.transforms import normalize
from ess.evaluation.evaluate import evaluate
from ess.inference import added as added_module
from ess.inference import examples as examples_module
from ess.inference import new_class
from ess.inference.added import AddedClass, read_added, remove_class, store_class
from ess.inference.export import Deployed
from ess.inference.new_class import make_class
from ess.inference.predictor import Predictor
from ess.losses.cross_entropy import exact_cross_entropy
from ess.models.network import SegmentationModel
from ess.training.loop import train

CLASSES, NEW = 8, 8
"""The number of trained classes in the generated pictures, and the label of the class that is not trained."""


def picture(rng: np.random.Generator, labels: list[int], size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Vertical stripes of some classes, each with its own colour and grain: (image (H, W, 3) uint8, labels (H, W))."""
    look = np.random.default_rng(5)
    colours, grains = look.integers(30, 226, (CLASSES + 1, 3)), look.integers(4, 25, CLASSES + 1)
    mask = np.repeat(np.repeat(labels, size // len(labels))[None], size, axis=0)
    noise = rng.normal(size=(*mask.shape, 3)) * grains[mask][..., None]
    return np.clip(colours[mask] + noise, 0, 255).astype(np.uint8), mask


def pictures(seed: int, count: int, *, new: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures of four stripes, one of them of the new class where ``new``."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(CLASSES)[:4] for _ in range(count)]
    return [picture(rng, [*labels[: 3 if new else 4].tolist(), *([NEW] if new else [])]) for labels in chosen]


@pytest.fixture(scope="module")
def trained() -> Predictor:
    """A small network after some steps in which pixels of the new class were present but ignored."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())
    model = SegmentationModel(encoder, nn.Conv2d(24, 8, 1), CLASSES, 8, multiple=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        seen = pictures(100 + step, 2, new=True) + pictures(200 + step, 2, new=False)
        images = normalize(torch.from_numpy(np.stack([image for image, _ in seen])).permute(0, 3, 1, 2))
        labels = torch.from_numpy(np.stack([mask for _, mask in seen])).short()
        labels[labels == NEW] = -1
        loss = exact_cross_entropy(model(images), labels, model.classes(), temperature=10.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Predictor(model.eval(), Vocabulary(coco_lvis().classes[:CLASSES]), torch.device("cpu"))


def examples(count: int = 5):
    return [(f"{n}.png", image, mask == NEW) for n, (image, mask) in enumerate(pictures(1, count, new=True))]


def with_class(trained: Predictor, *added) -> Predictor:
    return Predictor(trained.model, trained.vocabulary, trained.device, added=added)


def test_the_class_is_found_in_new_pictures_and_others_keep_theirs(trained):
    made = make_class("unicorn", trained, examples())
    assert (made.name, made.pixels, len(made.examples)) == ("unicorn", 5 * 48 * 12, 5)
    predictor = with_class(trained, made)
    assert predictor.vocabulary[CLASSES + 1].name == "unicorn"
    found = np.concatenate([predictor(image) == NEW + 1 for image, _ in pictures(2, 12, new=True)])
    truth = np.concatenate([mask == NEW for _, mask in pictures(2, 12, new=True)])
    assert (found & truth).sum() / (found | truth).sum() > 0.6
    before = np.stack([trained(image) for image, _ in pictures(3, 12, new=False)])
    after = np.stack([predictor(image) for image, _ in pictures(3, 12, new=False)])
    right = np.stack([mask + 1 for _, mask in pictures(3, 12, new=False)])
    assert (before == right).mean() > 0.8
    assert (before != after).mean() < 0.02
    assert set(np.unique(after[before != after]).tolist()) <= {NEW + 1}


@torch.no_grad()
def test_embedding_and_radius_are_those_of_the_definition(trained):
    made = make_class("unicorn", trained, examples(2))
    pixels = torch.cat([trained.outputs([image])[0].movedim(0, 2).flatten(0, 1) for _, image, _ in examples(2)])
    marked = torch.from_numpy(np.concatenate([mask.ravel() for _, _, mask in examples(2)]))
    embedding = F.normalize(pixels[marked].mean(dim=0), dim=0)
    torch.testing.assert_close(torch.tensor(made.embedding), embedding)
    distances = (pixels - embedding).square().sum(dim=1)
    iou = [((distances <= r) & marked).sum() / ((distances <= r) | marked).sum() for r in distances.sort().values[::7]]
    best = ((distances <= made.radius) & marked).sum() / ((distances <= made.radius) | marked).sum()
    assert best >= max(iou)


def test_embeddings_of_one_example_are_in_memory_at_a_time(trained, monkeypatch):
    alive, outputs = [], Predictor.outputs

    def noted(self, images):
        assert [reference for reference in alive if reference() is not None] == []
        arrays = [output.numpy().copy() for output in outputs(self, images)]  # each lives as long as any view of it
        alive.extend(map(weakref.ref, arrays))
        return [torch.from_numpy(array) for array in arrays]

    monkeypatch.setattr(Predictor, "outputs", noted)
    make_class("unicorn", trained, examples(4))
    assert len(alive) == 8


@pytest.mark.parametrize("function", ["distances", "_best_radius"])
def test_memory_that_runs_out_is_one_line(function, trained, monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(new_class, function, exhausted)
    with pytest.raises(DataError, match="out of memory; add the class from fewer or smaller examples, or on --device cpu"):
        make_class("unicorn", trained, examples(1))


def test_two_added_classes_compete_by_distance_within_their_radii(trained):
    made = make_class("unicorn", trained, examples())
    wide = type(made)("horse", made.embedding, made.radius * 2, [], 1, "")
    image = pictures(2, 1, new=True)[0][0]
    alone, both = with_class(trained, made)(image), with_class(trained, made, wide)(image)
    np.testing.assert_array_equal(both == NEW + 1, alone == NEW + 1)  # equally near: the first one
    assert ((both == NEW + 2) > (trained(image) == NEW + 2)).any()


def test_examples_that_define_no_class_are_refused(trained):
    image = examples(1)[0][1]
    for marked, message in (
        (np.zeros((48, 48), bool), "no pixel"),
        (np.ones((48, 48), bool), "all pixels of the examples are"),
    ):
        with pytest.raises(DataError, match=message):
            make_class("unicorn", trained, [("a.png", image, marked)])
    for name in ("", "a\nb", trained.vocabulary.name(1)):
        with pytest.raises(DataError, match="expected a printable name that no class of the run has"):
            make_class(name, trained, examples(1))


@pytest.fixture
def run(untrained_run, tmp_path) -> Path:
    """A copy of a run next to pictures and masks that show "unicorn" as a bright corner."""
    shutil.copytree(untrained_run, tmp_path / "run")
    rng = np.random.default_rng(0)
    for name, value in (("a", 200), ("b", 1)):
        mask = np.zeros((40, 52), np.uint16)
        mask[:20, :20] = value
        image = rng.integers(0, 60, (40, 52, 3)) + 190 * (mask > 0)[..., None]
        for folder, pixels in (("images", image.astype(np.uint8)), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), pixels)
    return tmp_path / "run"


def ess(command, run, *arguments, code=0):
    result = CliRunner().invoke(main, [command, str(run), *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def add(run, *arguments, name="unicorn", code=0):
    given = ("--name", name, "--images", run.parent / "images", "--masks", run.parent / "masks" / "*.png")
    return ess("add-class", run, *given, "--device", "cpu", *arguments, code=code)


def test_the_command_adds_lists_and_removes(run):
    table = add(run).stdout
    assert "1285" in table and "unicorn" in table
    content = json.loads((run / "added.json").read_text())
    assert content["classes"][0]["checkpoint"] == sha256(Run.open(run).checkpoints()[-1] / "model.safetensors")
    listed = json.loads(add(run, "--value", 200, "--json", name="centaur").stdout)["added"]
    images = [str(run.parent / "images" / f"{name}.png") for name in "ab"]
    assert listed == [
        {"class": 1285, "name": "unicorn", "examples": images, "pixels": 800},
        {"class": 1286, "name": "centaur", "examples": images[:1], "pixels": 400},
    ]
    add(run, "--value", 1)
    assert [(c.name, c.pixels) for c in read_added(Run.open(run))] == [("unicorn", 400), ("centaur", 400)]
    out = run.parent / "out"
    ess("predict", run, images[1], "--out", out, "--format", "png", "--format", "overlay", "--device", "cpu")
    assert 1285 in cv2.imread(str(out / "b.png"), cv2.IMREAD_UNCHANGED)
    assert "centaur" in ess("add-class", run, "--remove", "unicorn").stdout
    assert [c["name"] for c in json.loads(ess("add-class", run, "--list", "--json").stdout)["added"]] == ["centaur"]
    assert "has no added class 'unicorn'; it has centaur" in ess("add-class", run, "--remove", "unicorn", code=1).stderr


def test_an_evaluation_is_that_of_the_trained_classes(run, sample_dataset):
    before = evaluate(Predictor.from_run(run, "cpu"), Dataset.open(sample_dataset), limit=3)
    add(run)
    predictor = Predictor.from_run(run, "cpu")
    assert [c.name for c in predictor.added] == ["unicorn"]
    assert evaluate(predictor, Dataset.open(sample_dataset), limit=3) == before


def change_weights(run: Path) -> None:
    """Give the checkpoint of a run other weights, as more training does."""
    file = Run.open(run).checkpoints()[-1] / "model.safetensors"
    weights = load_file(file)
    weights["class_embeddings"] += 0.1
    save_file(weights, file)
    state = json.loads(file.with_name("state.json").read_text())
    state["sha256"]["model.safetensors"] = sha256(file)
    file.with_name("state.json").write_text(json.dumps(state))


def test_another_checkpoint_predicts_no_pixel_of_the_class_and_warns_once(run, caplog):
    image = cv2.imread(str(run.parent / "images" / "a.png"))[..., ::-1]
    add(run)
    assert 1285 in Predictor.from_run(run, "cpu")(image)
    change_weights(run)
    predictor = Predictor.from_run(run, "cpu")
    assert np.array_equal(predictor(image), predictor.without_added_classes()(image))
    (warning,) = caplog.records
    assert "unicorn was made with another checkpoint than step-00000001 and not predicted; add again" in warning.message
    add(run)
    assert 1285 in Predictor.from_run(run, "cpu")(image)


def test_every_result_has_the_ids_of_the_list_although_an_older_class_is_not_predicted(run, sample_dataset, tmp_path):
    add(run, name="old")
    change_weights(run)
    listed = json.loads(add(run, "--json").stdout)["added"]
    assert [(c["class"], c["name"]) for c in listed] == [(1285, "old"), (1286, "unicorn")]
    picture, out = run.parent / "images" / "b.png", tmp_path / "out"
    given = ("--out", out, "--format", "png", "--format", "rle", "--device", "cpu")
    ess("predict", run, picture, *given)
    mask = cv2.imread(str(out / "b.png"), cv2.IMREAD_UNCHANGED)
    assert 1286 in mask and 1285 not in mask
    categories = {entry["category_id"] for entry in json.loads((out / "predictions.json").read_text())}
    assert categories == {*np.unique(mask).tolist()}
    ess("predict", run, sample_dataset, "--out", tmp_path / "shards", "--format", "shards", "--device", "cpu")
    assert [c.name for c in Dataset.open(tmp_path / "shards").vocabulary][1284:] == ["old", "unicorn"]
    predictor = Predictor.from_run(run, "cpu")
    image = torch.from_numpy(cv2.imread(str(picture))[..., ::-1].copy())
    assert np.array_equal(Deployed(predictor).eval()(image).numpy(), predictor(image.numpy()))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--value", "7"), 1, "no pixel of the masks is 7: they hold 0, 1, 200; choose one of these with --value"),
        (("--list",), 2, "expected one of"),
        (("--checkpoint", "best"), 1, "no checkpoint was evaluated"),
        (("--masks", "absent.png"), 1, "absent.png: is not a file"),
    ],
)
def test_the_command_refuses_and_writes_nothing(run, arguments, code, message):
    assert message in add(run, *arguments, code=code).stderr
    assert not (run / "added.json").exists()


def test_examples_that_do_not_fit_are_refused(run):
    masks = run.parent / "masks"
    cv2.imwrite(str(masks / "c.png"), np.ones((4, 4), np.uint8))
    assert "c.png: no picture has the same stem" in add(run, code=1).stderr
    cv2.imwrite(str(run.parent / "images" / "c.png"), np.ones((4, 5, 3), np.uint8))
    assert "c.png: is 4 x 4, its picture" in add(run, code=1).stderr
    cv2.imwrite(str(masks / "c.png"), np.random.default_rng(0).integers(0, 9, (4, 5, 3), np.uint8))
    assert "c.png: the mask cannot be decoded: the PNG is in 20 colours; expected" in add(run, code=1).stderr
    (masks / "c.png").write_bytes(cv2.imencode(".jpg", np.ones((4, 5), np.uint8))[1].tobytes())
    assert "c.png: the mask cannot be decoded: it is a JPEG, which is lossy" in add(run, code=1).stderr
    cv2.imwrite(str(masks / "c.png"), np.ones((4, 5), np.uint8))
    (masks / "c.png").write_bytes((masks / "c.png").read_bytes()[:24])
    assert "c.png: the mask cannot be decoded: the PNG breaks off" in add(run, code=1).stderr
    (masks / "c.png").write_bytes(b"no picture")
    assert "c.png: the mask cannot be decoded" in add(run, code=1).stderr


def test_pictures_with_the_same_stem_are_found_with_one_look_at_each(run, monkeypatch):
    calls, nfc = [], examples_module.nfc
    monkeypatch.setattr(examples_module, "nfc", lambda text: calls.append(text) or nfc(text))
    for number in range(100):
        shutil.copy(run.parent / "images" / "a.png", run.parent / "images" / f"other {number}.png")
    pairs = examples_module.pair([str(run.parent / "images")], [str(run.parent / "masks")])
    assert [picture.name for picture, _ in pairs] == ["a.png", "b.png"] and len(calls) <= 3 * 104
    shutil.copy(run.parent / "images" / "a.png", run.parent / "images" / "a.bmp")
    with pytest.raises(DataError, match=r"a\.png: has the same stem as .*a\.bmp; pictures and masks are paired by stem"):
        examples_module.pair([str(run.parent / "images")], [str(run.parent / "masks")])


PALETTES = {
    "voc": [0, 0, 0, 128, 0, 0],
    "white and black": [255, 255, 255, 0, 0, 0],
    "grey and pink": [90, 90, 90, 255, 150, 200],
    "equal": [7, 7, 7, 7, 7, 7],
}


@pytest.mark.parametrize("palette", PALETTES)
def test_the_indices_of_a_palette_are_the_labels(run, palette):
    for name in "ab":
        mask = np.zeros((40, 52), np.uint8)
        mask[:20, :20] = 1
        image = Image.fromarray(mask).convert("P")
        image.putpalette(PALETTES[palette])
        image.putdata(mask.ravel().tolist())
        image.save(run.parent / "masks" / f"{name}.png")
    add(run)
    assert read_added(Run.open(run))[0].pixels == 800
    add(run, "--value", 1, name="centaur")
    assert [c.pixels for c in read_added(Run.open(run))] == [800, 800]


def test_masks_without_the_class_or_without_anything_else_name_their_values(run):
    for name in "ab":
        cv2.imwrite(str(run.parent / "masks" / f"{name}.png"), np.zeros((40, 52), np.uint8))
    assert "no pixel of the masks is other than 0: they hold 0" in add(run, code=1).stderr
    for name, value in (("a", 3), ("b", 255)):
        cv2.imwrite(str(run.parent / "masks" / f"{name}.png"), np.full((40, 52), value, np.uint8))
    message = add(run, code=1).stderr
    assert "every pixel of the masks is other than 0, which does not show where the class ends: they hold 3, 255" in message


def test_masks_that_do_not_say_which_value_is_the_class_are_refused(run):
    mask = np.full((40, 52), 90, np.uint8)
    mask[:20, :20] = 210
    cv2.imwrite(str(run.parent / "masks" / "b.png"), mask)
    said = "b.png: holds the values 90, 210; choose the one of the class with --value"
    assert said in add(run, code=1).stderr and not (run / "added.json").exists()
    add(run, "--value", 210)
    assert [c.pixels for c in read_added(Run.open(run))] == [400]


def test_masks_that_may_be_inverted_are_reported(run, caplog):
    for name in "ab":
        mask = np.full((40, 52), 255, np.uint8)
        mask[:20, :20] = 0
        cv2.imwrite(str(run.parent / "masks" / f"{name}.png"), mask)
    add(run)
    said = "the masks mark 81 % of the pixels; if the class is where they are 0, add it with --value 0"
    assert [record.message for record in caplog.records] == [said]
    caplog.clear()
    add(run, "--value", 0)
    assert [c.pixels for c in read_added(Run.open(run))] == [800] and not caplog.records


def test_a_mask_as_its_picture_is_shown_says_so(run):
    image = Image.fromarray(np.zeros((52, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(run.parent / "images" / "a.png", exif=exif)
    assert "only its EXIF orientation, 6, turns it to that size" in add(run, code=1).stderr


def test_colours_mark_and_alpha_does_not(run):
    for name in "ab":
        mask = np.zeros((40, 52, 4), np.uint8)
        mask[..., 3] = 255
        mask[:20, :20, 1] = 9
        cv2.imwrite(str(run.parent / "masks" / f"{name}.png"), mask)
    add(run)
    assert read_added(Run.open(run))[0].pixels == 800


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("version"), "format and version are ('ess-added', None)"),
        (lambda content: content["classes"][0].update(embedding=[1.0]), "is not 6 finite numbers"),
        (lambda content: content["classes"][0].update(embedding="six"), "malformed"),
        (lambda content: content.update(version=2), "('ess-added', 2), expected ('ess-added', 1)"),
        (lambda content: content.update(classes=None, version=2), "('ess-added', 2), expected ('ess-added', 1)"),
    ],
)
def test_a_changed_file_is_one_line(run, change, message):
    add(run)
    content = json.loads((run / "added.json").read_text())
    change(content)
    (run / "added.json").write_text(json.dumps(content))
    assert message in ess("add-class", run, "--list", code=1).stderr


def test_store_and_remove_keep_the_others(run, trained):
    opened, made = Run.open(run), make_class("unicorn", trained, examples(1))
    classes = [type(made)(name, [0.0] * 6, 1.0, [], 1, "") for name in ("a", "b", "c")]
    for new in classes:
        store_class(opened, new)
    remove_class(opened, "b")
    assert read_added(opened) == [classes[0], classes[2]]


def test_classes_that_end_at_the_same_time_are_all_kept(run, monkeypatch):
    reading = added_module.read_added

    def slowly(opened: Run):
        known = reading(opened)
        time.sleep(0.02)
        return known

    monkeypatch.setattr(added_module, "read_added", slowly)
    opened, names = Run.open(run), [f"class {number}" for number in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: store_class(opened, AddedClass(name, [0.0] * 6, 1.0, [], 1, "")), names))
        assert sorted(new.name for new in reading(opened)) == names
        list(pool.map(lambda name: remove_class(opened, name), names[1:]))
    assert [new.name for new in reading(opened)] == names[:1]


def test_a_dense_head_is_refused_in_one_line(sample_dataset, tmp_path, run):
    settings = {"encoder": "mobilenetv2_100", "weights": "none", "crop": 48, "batch_size": 2, "workers": 0, "loss": "dense"}
    train(Dataset.open(sample_dataset), tmp_path / "dense", Config(**settings, steps=1, epochs=None, device="cpu"))
    shutil.rmtree(run)
    (tmp_path / "dense").rename(run)
    message = add(run, code=1).stderr
    assert "the run has a dense head, which has no embeddings" in message
    assert len([line for line in message.splitlines() if "add-class:" not in line]) == 1
