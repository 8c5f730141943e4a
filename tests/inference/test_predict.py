"""Prediction: blending and batching compared with one plain pass, and result files read back by other tools."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import nn

from cli.ess import main
from cocolvis.ahead import ahead
from cocolvis.errors import DataError
from cocolvis.vocabulary import Vocabulary, coco_lvis
from ess.data.transforms import normalize
from ess.inference.inputs import find_inputs
from ess.inference.predictor import Predictor
from ess.inference.results import predict_files, run_lengths
from ess.inference.views import Inference
from ess.models.build import build_model
from ess.models.network import SegmentationModel

CPU = torch.device("cpu")


def few(classes: int) -> Vocabulary:
    return Vocabulary(coco_lvis().classes[:classes])


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth picture: (H, W, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def network(head: str, seed: int = 0) -> SegmentationModel:
    torch.manual_seed(seed)
    return build_model("fpn", "resnet18", classes=20, dim=6, head=head).eval()


@pytest.fixture(scope="module", params=["embedding", "dense"])
def model(request) -> SegmentationModel:
    return network(request.param)


def predictor(model: SegmentationModel, **settings) -> Predictor:
    return Predictor(model, few(20), CPU, Inference(**settings))


def views(model: SegmentationModel, image: np.ndarray, scales, mirrors) -> torch.Tensor:
    """The outputs for a picture at each scale, mirrored or not, back at its size: (views, D, H, W)."""
    pixels, found = normalize(torch.from_numpy(image).permute(2, 0, 1)[None]), []
    for scale in scales:
        size = [round(side * scale) for side in image.shape[:2]]
        seen = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        for mirrored in mirrors:
            output = model(torch.flip(seen, [3]) if mirrored else seen)
            output = torch.flip(output, [3]) if mirrored else output
            found.append(F.interpolate(output, size=image.shape[:2], mode="bilinear", align_corners=False)[0])
    return torch.stack(found)


@torch.no_grad()
def test_blended_views_have_the_least_mean_squared_distance_or_the_largest_mean_logit(model):
    image = photo(61, 83)
    outputs = views(model, image, (0.75, 1.0, 1.25), (False, True))
    if model.class_embeddings is None:
        expected = outputs.mean(dim=0).argmax(dim=0)
    else:
        distances = torch.stack([(outputs - c[:, None, None]).square().sum(dim=1).mean(dim=0) for c in model.classes()])
        expected = distances.argmin(dim=0)
    blending = predictor(model, scales=(0.75, 1.0, 1.25), flip=True)
    found = blending(image)
    torch.testing.assert_close(blending.outputs([image])[0], outputs.mean(dim=0), atol=1e-4, rtol=1e-4)
    assert (found == expected.numpy() + 1).mean() > 0.999
    assert (found != predictor(model)(image)).any()


class PerPixel(SegmentationModel):
    """A model that looks at each pixel alone, and records the shape of the images of each pass."""

    def __init__(self, classes: int = 5):
        super().__init__(nn.Conv2d(3, 4, 1), nn.Identity(), classes, 4, multiple=8)
        self.passes = []

    def encode(self, images):
        self.passes.append(tuple(images.shape))
        return super().encode(images)


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (17, None), (60, 30), (500, 100)])
def test_windows_cover_every_pixel_and_change_nothing_where_only_the_pixel_counts(window, stride):
    torch.manual_seed(0)
    model = PerPixel().eval()
    image = photo(45, 62)
    whole = Predictor(model, few(5), CPU)
    torch.testing.assert_close(
        Predictor(model, few(5), CPU, Inference(window=window, stride=stride, batch_size=3)).outputs([image])[0],
        whole.outputs([image])[0],
    )
    assert max(shape[2] for shape in model.passes) <= max(window, 45) and max(shape[0] for shape in model.passes) <= 3


def test_bf16_is_the_arithmetic_of_the_network_alone(model):
    """Embeddings stay float32, most pixels keep their class, and float32 again gives the same bits as before."""
    image, seen = photo(70, 90), []
    exact = predictor(model)(image)
    hook = model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    coarse = predictor(model, precision="bf16")
    assert {output.dtype for output in coarse.outputs([image])} == {torch.float32}
    assert (coarse(image) == exact).mean() > 0.9
    assert set(seen) == {torch.bfloat16}
    assert np.array_equal(predictor(model)(image), exact) and seen[-1] == torch.float32
    hook.remove()
    with pytest.raises(DataError, match="precision is 'fp8': expected float32 or bf16"):
        Inference(precision="fp8")


def test_overlapping_windows_are_averaged(model):
    """Two windows of 64 over a width of 96 share the middle third."""
    image = photo(64, 96)
    pixels = normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
    with torch.no_grad():
        left, right = model(pixels[..., :64])[0], model(pixels[..., 32:])[0]
    found = predictor(model, window=64, stride=32).outputs([image])[0]
    torch.testing.assert_close(found[..., :32], left[..., :32], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[..., 32:64], (left[..., 32:] + right[..., :32]) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[..., 64:], right[..., 32:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"flip": True, "scales": (0.5, 1.0)}])
def test_batches_equal_one_by_one(model, settings):
    sizes = [(61, 83), (64, 90), (33, 40), (62, 96), (64, 65), (128, 31)]
    images = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    together, alone = predictor(model, batch_size=4, **settings), predictor(model, **settings)
    for found, image in zip(together(images), images, strict=True):
        assert found.dtype == np.uint16 and (found == alone(image)).mean() > 0.999
    alike = images[0], images[1]  # both are padded to 64 x 96
    for image, output in zip(alike, together.outputs(alike) if not settings else [], strict=not settings):
        torch.testing.assert_close(output, alone.outputs([image])[0], atol=1e-4, rtol=1e-4)


def test_only_images_of_equal_padded_size_share_a_pass_and_few_wait():
    model = PerPixel().eval()
    images = [photo(9 + 8 * (seed % 3), 9, seed=seed) for seed in range(7)]
    found = list(Predictor(model, few(5), CPU, Inference(batch_size=2)).stream(enumerate(images)))
    assert sorted(key for key, _, _ in found) == list(range(7))
    assert sorted(shape[0] for shape in model.passes) == [1, 2, 2, 2]
    assert all(image is images[key] and mask.shape == image.shape[:2] for key, image, mask in found)
    taken = []
    different = ((taken.append(side) or side, photo(8 * side, 8)) for side in range(1, 40))
    next(Predictor(model, few(5), CPU, Inference(batch_size=2)).stream(different))
    assert len(taken) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 3}, "without a window"),
        ({"window": 4, "stride": 5}, r"stride is 5: expected 1\.\.4"),
        ({"scales": (1.0, 0.0)}, "positive"),
        ({"scales": ()}, "positive"),
        ({"scales": (float("nan"),)}, "positive"),
        ({"scales": (1.0, 16.1)}, r"scales are \(1.0, 16.1\): expected one or more positive numbers of at most 16$"),
        ({"scales": (1e308,)}, "at most 16"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Inference(**settings)


def test_memory_that_runs_out_is_one_line(monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = PerPixel().eval()
    monkeypatch.setattr(model, "classify", exhausted)
    with pytest.raises(DataError, match=r"^out of memory; the image is 9 x 8; choose a --window, where the command has it$"):
        Predictor(model, few(5), CPU)(photo(9, 8))
    with pytest.raises(DataError, match=r"the image is 9 x 8; choose a smaller --window or --batch-size, or --device cpu$"):
        Predictor(model, few(5), torch.device("meta"), Inference(window=4)).without_added_classes()(photo(9, 8))
    with pytest.raises(DataError, match=r"the image is 9 x 8; buy more$"):
        Predictor(model, few(5), CPU, advice="buy more").without_added_classes()(photo(9, 8))
    monkeypatch.setattr(model, "coarse", exhausted)
    with pytest.raises(DataError, match="the image is 9 x 8; choose"):
        Predictor(model, few(5), CPU).from_features([np.zeros((3, 9, 8), np.float32)], (9, 8))


def test_images_that_do_not_fit_the_memory_together_are_predicted_one_at_a_time(monkeypatch, caplog):
    model, passes = PerPixel().eval(), []
    images, encode = [photo(9, 8) for _ in range(6)], model.encode
    expected = [Predictor(model, few(5), CPU)(image) for image in images]

    def crowded(pixels):
        passes.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    monkeypatch.setattr(model, "encode", crowded)
    found = Predictor(model, few(5), CPU, Inference(batch_size=3))(images)
    assert all(map(np.array_equal, found, expected)) and passes == [3, *[1] * 6]
    (record,) = caplog.records
    assert "3 images do not fit the memory together" in record.getMessage()


def test_work_ahead_keeps_its_order_and_is_bounded():
    taken = []
    found = ahead(lambda n: n * n, (taken.append(n) or n for n in range(20)), threads=2)
    assert next(found) == 0 and len(taken) == 5
    assert [*found] == [n * n for n in range(1, 20)]
    with pytest.raises(ZeroDivisionError):
        [*ahead(lambda n: 1 // n, [1, 0, 1], threads=1)]


def test_a_vision_transformer_takes_any_size():
    model = build_model("dpt", "deit_tiny_patch16_224", classes=5, dim=4).eval()
    assert Predictor(model, few(5), CPU)(photo(97, 131)).shape == (97, 131)


def test_run_lengths_are_read_by_pycocotools(tmp_path):
    mask = np.random.default_rng(0).choice([3, 7, 1284], (37, 52)).astype(np.uint16)
    entries = run_lengths(mask, Path("000000000139.jpg")) + run_lengths(mask[:5], Path("b/photo.png"), 8)
    for entry in entries:
        expected = mask if entry["file_name"] == "000000000139.jpg" else mask[:5]
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), expected == entry["category_id"])
    assert [entry["category_id"] for entry in entries] == [3, 7, 1284] * 2
    assert {entry["image_id"] for entry in entries} == {139, "photo.png"} and {e.get("frame") for e in entries} == {None, 8}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 139, "height": 37, "width": 52}],
        "annotations": [],
        "categories": [{"id": c} for c in (3, 7, 1284)],
    }
    truth.createIndex()
    (tmp_path / "results.json").write_text(json.dumps(entries[:3]))
    loaded = truth.loadRes(str(tmp_path / "results.json"))
    np.testing.assert_array_equal(loaded.annToMask(loaded.loadAnns([2])[0]), mask == 7)


@pytest.fixture
def pictures(tmp_path) -> Path:
    for name, size in (("a.png", (40, 50)), ("deep/er/b.jpg", (33, 47)), ("deep/c.PNG", (40, 50))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(Path(name).suffix.lower(), photo(*size))[1].tofile(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def test_inputs_are_files_folders_and_globs(pictures):
    def named(*arguments, exclude=None):
        return {str(one.name): one.path.name for one in find_inputs([str(a) for a in arguments], exclude)}

    everything = {"a": "a.png", "deep/er/b": "b.jpg", "deep/c": "c.PNG"}
    assert named(pictures) == named(pictures, pictures / "a.png") == everything
    assert named(pictures / "deep" / "er" / "b.jpg") == {"b": "b.jpg"}
    assert named(pictures / "*.png") == {"a": "a.png"}
    assert named(pictures / "**" / "*.jpg") == {"deep/er/b": "b.jpg"}
    assert named(pictures, exclude=pictures / "deep") == {"a": "a.png"}
    (pictures / "odd[1].png").write_bytes((pictures / "a.png").read_bytes())
    assert named(pictures / "odd[1].png") == {"odd[1]": "odd[1].png"}
    for argument, message in (("absent.jpg", "is not a file"), ("*.gif", "no pictures"), ("notes.txt/..", "is not a file")):
        with pytest.raises(DataError, match=message):
            named(pictures / argument)


def test_files_that_would_replace_each_other_are_refused_before_any_work(pictures, tmp_path):
    (pictures / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 inputs would be written as .*a\.png"):
        predict_files(None, find_inputs([str(pictures)]), tmp_path / "out")
    (pictures / "a.jpg").unlink()
    with pytest.raises(DataError, match="would overwrite the input"):
        predict_files(None, find_inputs([str(pictures / "a.png")]), pictures)


@pytest.fixture
def small() -> Predictor:
    torch.manual_seed(0)
    return Predictor(PerPixel().eval(), few(5), CPU, Inference(batch_size=2))


def test_results_of_a_folder_in_every_form_and_again(pictures, tmp_path, small):
    out = tmp_path / "out"
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    inputs, seen = find_inputs([str(pictures)]), []
    faults = predict_files(small, inputs, out, ("png", "overlay", "rle"), progress=lambda *done: seen.append(done))
    assert len(faults) == 1 and "broken.jpg: the picture cannot be decoded" in faults[0]
    assert seen[-1] == (4, 4)
    entries = json.loads((out / "predictions.json").read_text())
    for name in ("a", "deep/c", "deep/er/b"):
        mask = cv2.imread(str(out / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        source = next(one for one in inputs if str(one.name) == name)
        np.testing.assert_array_equal(mask, small(cv2.imread(str(source.path))[..., ::-1]))
        mine = [entry for entry in entries if entry["file_name"] == str(source.path)]
        assert sum(entry["category_id"] * coco_mask.decode(entry["segmentation"]).astype(int) for entry in mine).tolist() == (
            mask.tolist()
        )
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(before) == 6
    (out / "a.png").unlink()
    predict_files(small, inputs, out, ("png", "overlay", "rle"), skip_existing=True)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert {path.name for path in before if before[path] != after[path]} == {"a.png", "a_overlay.png"}
    assert json.loads((out / "predictions.json").read_text()) == entries
    predict_files(small, inputs, out, ("png", "overlay"))
    assert not {path for path in after if path.stat().st_mtime_ns == after[path]}


def test_what_was_predicted_before_an_interruption_is_kept(pictures, tmp_path, small):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(small, find_inputs([str(pictures)]), tmp_path / "out", ("rle",), progress=interrupt)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())


@pytest.fixture
def film(tmp_path) -> Path:
    """Seven frames of plain grey, each brighter than the one before."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    assert writer.isOpened()
    for number in range(7):
        writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    writer.release()
    return path


def test_a_video_becomes_masks_and_an_overlay_video(film, tmp_path, small):
    out, seen = tmp_path / "out", []
    inputs = find_inputs([str(film)])
    done = predict_files(small, inputs, out, ("png", "overlay", "rle"), every=3, progress=lambda *d: seen.append(d))
    assert done == [] and seen[-1] == (3, 3)
    assert [path.name for path in sorted((out / "film").iterdir())] == ["000000.png", "000003.png", "000006.png"]
    assert {entry["frame"] for entry in json.loads((out / "predictions.json").read_text())} == {0, 3, 6}
    overlay = cv2.VideoCapture(str(out / "film_overlay.mp4"))
    frames = [overlay.read()[1] for _ in range(3)]
    assert not overlay.read()[0] and frames[0].shape == (480, 640, 3)
    assert frames[0].mean() < frames[1].mean() < frames[2].mean()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    stamp = (out / "film_overlay.mp4").stat().st_mtime_ns
    predict_files(small, inputs, out, ("png", "overlay", "rle"), every=3, skip_existing=True)
    assert (out / "film_overlay.mp4").stat().st_mtime_ns == stamp
    (out / "film" / "000003.png").unlink()
    passes = len(small.model.passes)
    predict_files(small, inputs, out, ("png",), every=3, skip_existing=True)
    assert (out / "film" / "000003.png").exists() and len(small.model.passes) == passes + 1


def test_what_is_no_video_is_told_and_stops_nothing(film, tmp_path, small):
    (tmp_path / "text.mp4").write_text("no video")
    faults = predict_files(small, find_inputs([str(tmp_path / "text.mp4"), str(film)]), tmp_path / "out", ("png",))
    assert len(faults) == 1 and "text.mp4: the video cannot be opened" in faults[0]
    assert len(list((tmp_path / "out" / "film").iterdir())) == 7


def test_the_command_takes_paths_from_stdin_and_goes_on_after_a_broken_picture(untrained_run, pictures, tmp_path):
    (pictures / "broken.jpg").write_bytes(b"")
    names = f"{pictures / 'a.png'}\n{pictures / 'broken.jpg'}\n\n"
    arguments = [
        "predict",
        str(untrained_run),
        "-",
        "--out",
        str(tmp_path / "out"),
        "--format",
        "png",
        "--window",
        "32",
        "--flip",
    ]
    result = CliRunner().invoke(main, [*arguments, "--scales", "0.75,1", "--batch-size", "3", "--device", "cpu"], input=names)
    assert result.exit_code == 1, result.output
    assert "broken.jpg: the picture cannot be decoded: the file is empty" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert CliRunner().invoke(main, [*arguments, "--scales", "1,x"], input=names).exit_code == 2
    wrong = CliRunner().invoke(main, [*arguments, "--stride", "33"], input=names)
    assert wrong.exit_code == 1 and "stride is 33: expected 1..32" in wrong.stderr


def test_three_lines_of_python(untrained_run):
    import ess

    predict = ess.Predictor.from_run(untrained_run, "cpu")
    assert [mask.shape for mask in predict([np.zeros((9, 8, 3), np.uint8)])] == [(9, 8)]
    with pytest.raises(ValueError, match="expected uint8"):
        predict(np.zeros((4, 4), np.uint8))


def test_read_only_pictures_are_copied_before_pytorch_warns_of_them(small, tmp_path, monkeypatch):
    given, from_numpy = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: given.append(array) or from_numpy(array))
    cv2.imwrite(str(tmp_path / "a.bmp"), np.zeros((9, 8), np.uint8))
    assert predict_files(small, find_inputs([str(tmp_path / "a.bmp")]), tmp_path / "out", ("png",)) == []
    pixels = np.zeros((9, 8, 3), np.uint8)
    pixels.flags.writeable = False
    assert [mask.shape for mask in small([pixels])] == [(9, 8)]
    assert len(given) == 2 and all(array.flags.writeable for array in given)


def test_the_weights_of_a_predictor_lie_channels_last_on_the_cpu(untrained_run):
    model = Predictor.from_run(untrained_run, "cpu").model
    weights = [value for value in model.parameters() if value.ndim == 4 and value.shape[1] > 1 and value.shape[2] > 1]
    assert weights and all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        found = model(images)
        torch.testing.assert_close(model.to(memory_format=torch.contiguous_format)(images), found)
