"""Exported files compared with the predictor, at sizes that the exporter did not see."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from test_predict import photo

from cli.ess import main
from cocolvis.errors import DataError
from cocolvis.vocabulary import Vocabulary, coco_lvis
from ess.inference import export as exporting
from ess.inference.added import AddedClass
from ess.inference.predictor import Predictor
from ess.models.build import build_model
from ess.models.network import SegmentationModel

SIZES = ((96, 64), (61, 147))
NETWORKS = [("deeplabv3plus", "mobilenetv2_100", "embedding", "onnx"), ("fpn", "resnet18", "dense", "torch")] + [
    (arch, encoder, head, kind)
    for arch, encoder in (("upernet", "convnext_tiny"), ("segformer", "convnext_tiny"), ("dpt", "deit_tiny_patch16_224"))
    for head in ("embedding", "dense")
    for kind in exporting.FORMATS
]


class Colours(torch.nn.Module):
    """An encoder without a network: the three channels of each pixel, and at stride 4 their mean around it."""

    def forward(self, images):
        return images, torch.nn.functional.avg_pool2d(images, 4)


class Joined(torch.nn.Module):
    def forward(self, features):
        fine, coarse = features
        return torch.cat([fine, torch.nn.functional.interpolate(coarse, size=fine.shape[-2:])], dim=1)


def predictor_of(model: SegmentationModel, classes: int, added=(), bias=None) -> Predictor:
    vocabulary = Vocabulary(coco_lvis().classes[:classes])
    return Predictor(model.eval(), vocabulary, torch.device("cpu"), added=added, bias=bias)


def colours(classes: int, **settings) -> SegmentationModel:
    torch.manual_seed(1)
    return SegmentationModel(Colours(), Joined(), classes, 6, multiple=8, **settings)


def assert_file_agrees(predictor: Predictor, path, kind: str) -> None:
    """The file agrees on its own picture, and at other sizes."""
    assert exporting.export(predictor, path, kind) > 0.999
    run = exporting.load(path, kind)
    for seed, size in enumerate(SIZES):
        image = photo(*size, seed=seed)
        found = run(image)
        assert found.dtype == np.int32 and found.shape == size
        assert (found == predictor(image)).mean() > 0.999


def assert_export_agrees(arch: str, encoder: str, head: str, kind: str, path) -> None:
    torch.manual_seed(0)
    assert_file_agrees(predictor_of(build_model(arch, encoder, classes=300, dim=6, head=head), 300), path, kind)


@pytest.mark.long
@pytest.mark.parametrize(("arch", "encoder", "head", "kind"), NETWORKS)
def test_a_file_of_every_kind_of_network(arch, encoder, head, kind, tmp_path):
    assert_export_agrees(arch, encoder, head, kind, tmp_path / "model")


@pytest.mark.parametrize("bins", [2, 3, 6])
def test_pooling_that_can_be_exported_is_pytorchs(bins):
    for size in ((1, 4), (7, 6), (13, 20)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(exporting._AdaptivePooling(bins)(x), torch.nn.functional.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize("kind", exporting.FORMATS)
@pytest.mark.parametrize(
    "settings",
    [
        {"normalize": None, "distance": "cosine"},
        *(
            pytest.param(settings, marks=pytest.mark.long)
            for settings in ({}, {"normalize": None}, {"normalize": "quarter", "smallest": 128})
        ),
    ],
)
def test_every_distance_with_many_classes_and_added_ones(kind, settings, tmp_path):
    model = colours(300, **settings)
    plain = predictor_of(model, 300)
    seen = plain.outputs([photo(*SIZES[0])])[0].flatten(1).T
    radius = -2.0 if model.distance == "cosine" else 0.3
    added = [AddedClass(f"new {n}", seen[n].tolist(), radius, [], 1, "") for n in (0, 3000)]
    predictor = predictor_of(model, 300, added)
    assert {301, 302} <= set(np.unique(predictor(photo(*SIZES[0]))).tolist())
    assert_file_agrees(predictor, tmp_path / "model", kind)


@pytest.mark.parametrize(
    ("head", "distance", "kind"),
    [
        ("embedding", "euclidean", "onnx"),
        ("dense", "euclidean", "torch"),
        *(
            pytest.param(head, distance, kind, marks=pytest.mark.long)
            for head, distance in (("embedding", "squared"), ("embedding", "cosine"), ("dense", "euclidean"))
            for kind in exporting.FORMATS
        ),
    ],
)
def test_a_file_with_the_bias_of_a_calibration(head, distance, kind, tmp_path):
    model = colours(300, distance=distance)
    if head == "dense":
        model.class_embeddings, model.decoder = None, torch.nn.Sequential(Joined(), torch.nn.Conv2d(6, 300, 1))
    bias = torch.randn(300, generator=torch.Generator().manual_seed(0)) / 4
    added = ()
    if head == "embedding":
        seen = predictor_of(model, 300).outputs([photo(*SIZES[0])])[0].flatten(1).T
        radius = -0.5 if distance == "cosine" else 0.3
        added = [AddedClass(f"new {n}", seen[n].tolist(), radius, [], 1, "") for n in (0, 3000)]
    predictor = predictor_of(model, 300, added, bias)
    assert (predictor(photo(*SIZES[0])) != predictor_of(model, 300, added)(photo(*SIZES[0]))).mean() > 0.1
    assert_file_agrees(predictor, tmp_path / "model", kind)


def test_a_file_says_what_its_classes_are_and_holds_no_code_of_ours(tmp_path):
    predictor = predictor_of(colours(300), 300)
    names = [c.name for c in predictor.vocabulary]
    exporting.export(predictor, tmp_path / "model.onnx", "onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == names
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.type, given.shape[2], made.type) == ("tensor(uint8)", 3, "tensor(int32)")
    assert all(isinstance(side, str) for side in (*given.shape[:2], *made.shape))
    exporting.export(predictor, tmp_path / "model.pt2", "torch")
    extra = {"classes.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"]) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2"]


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    predictor = predictor_of(colours(300), 300)
    monkeypatch.setattr(exporting, "normalize", lambda images: images.float() / 255)
    with pytest.raises(DataError, match=r"differs from the run on \d+\.\d+% of a picture's pixels; it is not kept"):
        exporting.export(predictor, tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_what_pytorch_cannot_export_is_one_line(tmp_path):
    class Branching(Joined):
        def forward(self, features):
            return super().forward(features) * (2 if features[0].sum() > 0 else 1)

    model = colours(300)
    model.decoder = Branching()
    with pytest.raises(DataError, match="PyTorch cannot export this network") as caught:
        exporting.export(predictor_of(model, 300), tmp_path / "model.pt2", "torch")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def run_export(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.mark.long
def test_the_command_checks_the_file(untrained_run, tmp_path):
    result = run_export(untrained_run, "--format", "torch", "--out", tmp_path / "model.pt2")
    assert result.exit_code == 0 and "% of the pixels of a test picture get the class" in result.stdout


def test_the_command_says_what_to_install(untrained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    result = run_export(untrained_run, "--out", tmp_path / "model.onnx")
    assert result.exit_code == 1 and "pip install 'cocolvis-ess[export]'" in result.stderr
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else sys)
    monkeypatch.setattr(exporting, "_write_onnx", lambda module, path, names: path.write_bytes(b"a model"))
    result = run_export(untrained_run, "--out", tmp_path / "model.onnx")
    assert result.exit_code == 0 and "not compared with the run: pip install onnxruntime" in result.stdout
