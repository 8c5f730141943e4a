"""`ess analyze`: the numbers next to each figure compared with naive recomputations from weights, masks and predictions."""

import csv
import dataclasses
import json
import os
import shutil
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
import runs
import scipy.stats
from click.testing import CliRunner
from trees import box

from cli.ess import main
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import Vocabulary, coco_lvis
from ess.checkpoint import Run
from ess.evaluation.metrics import Confusion
from ess.figures import analysis, clusters, dendrogram, miou_curves, pixel_embeddings
from ess.figures.analysis import Analysis, Options, busiest
from ess.figures.class_lengths import correlations
from ess.figures.collection import MAKERS, collect
from ess.figures.confused_pairs import most_confused
from ess.inference.predictor import Predictor
from ess.inference.views import Inference

LIMIT, SHOWN, CLUSTERS = 4, 2, 12


def ess(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def baseline(dataset, tmp_path_factory):
    from ess.training.loop import train

    return train(dataset, tmp_path_factory.mktemp("dense") / "dense", runs.config(loss="dense", steps=1))


@pytest.fixture(scope="module")
def written(run, baseline, sample, tmp_path_factory):
    """The folder of all figures that the command wrote for a tiny run."""
    folder = tmp_path_factory.mktemp("figures")
    words = [
        "analyze",
        run.folder,
        sample.data,
        "--out",
        folder,
        "--limit",
        LIMIT,
        "--seed",
        5,
        "--clusters",
        CLUSTERS,
        "--device",
        "cpu",
    ]
    words += ["--baseline", baseline.folder, "--coco", sample.coco, "--lvis", sample.lvis, "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_embeddings, "_PIXELS", 300)
        patch.setattr(analysis, "SHOWN", SHOWN)
        patch.setattr(clusters, "STARTS", 2)
        result = ess(*words)
    assert json.loads(result.stdout)["left_out"] == []
    return folder


@pytest.fixture(scope="module")
def raw(run):
    """The class embeddings as stored: (C, d)."""
    return runs.weights(run.folder, 4)["class_embeddings"].double().numpy()


@pytest.fixture(scope="module")
def embeddings(raw):
    return np.array([vector / np.sqrt((vector**2).sum()) for vector in raw])


@pytest.fixture(scope="module")
def images(dataset):
    """How many training images show each class, from the masks: (C,)."""
    split, found = dataset.split("train"), np.zeros(1285, int)
    for row in range(len(split)):
        found[np.unique(split.mask(row))] += 1
    return found[1:]


@pytest.fixture(scope="module")
def predictors(run, baseline):
    return {"dense": Predictor.from_run(baseline.folder, "cpu"), "run": Predictor.from_run(run.folder, "cpu")}


@pytest.fixture(scope="module")
def predicted(predictors, dataset):
    """Run -> (true, predicted) class ids of the first images of val."""
    val = dataset.split("val")
    return {name: [(val.mask(row), predict(val[row].image())) for row in range(LIMIT)] for name, predict in predictors.items()}


def iou(pairs, c):
    """The IoU of one class by plain sums; None if it is absent from the truth."""
    truth = sum(int((mask == c).sum()) for mask, _ in pairs)
    both = sum(int(((mask == c) & (guess == c)).sum()) for mask, guess in pairs)
    either = sum(int((((mask == c) | (guess == c)) & (mask > 0)).sum()) for mask, guess in pairs)
    return both / either if truth else None


def test_each_figure_has_its_files_and_the_index_lists_them(written, run):
    index = json.loads((written / "figures.json").read_text())
    assert index["run"] == str(run.folder) and index["step"] == 4 and index["left_out"] == []
    assert [figure["name"] for figure in index["figures"]] == [*MAKERS] and len(MAKERS) == 9
    listed = {figure[kind] for figure in index["figures"] for kind in ("png", "svg", "csv")}
    assert listed | {"figures.json"} == {path.name for path in written.iterdir()}
    for figure in index["figures"]:
        assert min(cv2.imread(str(written / figure["png"])).shape[:2]) > 400
        assert "fill: #ffffff" in (written / figure["svg"]).read_text(), "the text would be unreadable on a dark page"
        assert len(figure["caption"]) > 40 and figure["title"]


def test_class_lengths(written, raw, images, dataset):
    rows = read(written / "class_lengths.csv")
    assert [int(row["class"]) for row in rows] == [*range(1, 1285)]
    assert [int(row["training_images"]) for row in rows] == images.tolist()
    assert [float(row["length"]) for row in rows] == pytest.approx([float(sum(v**2 for v in e)) ** 0.5 for e in raw])
    split = dataset.split("train")
    pixels = sum(np.bincount(split.mask(row).ravel(), minlength=1285) for row in range(len(split)))
    assert [int(row["training_pixels"]) for row in rows] == pixels[1:].tolist()
    trained, lengths = images > 0, np.linalg.norm(raw, axis=1)
    spearman = scipy.stats.spearmanr(images[trained], lengths[trained]).statistic
    pearson = scipy.stats.pearsonr(np.log(images[trained]), lengths[trained]).statistic
    assert correlations(images[trained], lengths[trained]) == pytest.approx((spearman, pearson))
    caption = captions(written)["class_lengths"]
    assert f"{spearman:.2f}" in caption and f"{pearson:.2f}" in caption
    assert "normalize = full" in caption and "about runs with +no-normalisation" in caption


def captions(folder):
    return {figure["name"]: figure["caption"] for figure in json.loads((folder / "figures.json").read_text())["figures"]}


def test_lengths_count_in_a_run_without_normalisation(run, dataset, raw, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "run")
    described = json.loads((copy / "run.json").read_text())
    described["settings"]["normalize"] = "none"
    (copy / "run.json").write_text(json.dumps(described))
    (figure,) = collect(Run.open(copy), dataset, tmp_path / "out", Options(only=["class_lengths"], device="cpu"))
    assert "In the paper" in figure.caption and "normalize = full" not in figure.caption
    assert np.array_equal(Analysis(Run.open(copy), None, Options(device="cpu")).embeddings, raw)


def test_miou_by_frequency(written, images, predicted):
    rows = read(written / "miou_by_frequency.csv")
    order = sorted(range(1, 1285), key=lambda c: (-images[c - 1], c))[: int((images > 0).sum())]
    for name in ("run", "dense"):
        mine, known = [row for row in rows if row["run"] == name], []
        assert [int(row["class"]) for row in mine] == order and len(rows) == 2 * len(order)
        for n, (c, row) in enumerate(zip(order, mine, strict=True), 1):
            found = iou(predicted[name], c)
            known += [] if found is None else [found]
            assert int(row["n"]) == n and int(row["training_images"]) == images[c - 1]
            assert row["iou"] == "" if found is None else float(row["iou"]) == pytest.approx(found)
            assert float(row["miou"] or -1) == pytest.approx(sum(known) / len(known) if known else -1)


def test_confused_pairs(written, predicted):
    counts, totals = Counter(), Counter()
    for mask, guess in predicted["run"]:
        for truth, wrong in zip(mask.ravel().tolist(), guess.ravel().tolist(), strict=True):
            totals[truth] += 1
            if truth not in (0, wrong):
                counts[truth, wrong] += 1
    rows = read(written / "confused_pairs.csv")
    wanted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000]
    assert [((int(row["truth"]), int(row["predicted"])), int(row["pixels"])) for row in rows] == wanted
    for row in rows:
        assert float(row["share_of_truth"]) == pytest.approx(int(row["pixels"]) / totals[int(row["truth"])])
        assert row["truth_name"] == coco_lvis().name(int(row["truth"]))


def test_pairs_are_ordered_and_limited():
    matrix = np.array([[9, 1, 2], [2, 0, 0], [0, 5, 1]])
    assert [(p.truth, p.predicted, p.pixels) for p in most_confused(matrix, 9)] == [(3, 2, 5), (1, 3, 2), (2, 1, 2), (1, 2, 1)]
    assert [p.share for p in most_confused(matrix, 2)] == [5 / 6, 2 / 12]


def shown(dataset):
    """The images that are shown: those of val with the most classes of 1 % of the pixels."""
    val = dataset.split("val")
    large = [sum(n >= 0.01 * val.mask(row).size for n in np.bincount(val.mask(row).ravel())[1:]) for row in range(len(val))]
    return sorted(range(len(val)), key=lambda row: -large[row])[:SHOWN]


def test_predictions(written, dataset, run, baseline, predictors):
    val, rows = dataset.split("val"), iter(read(written / "predictions.csv"))
    for index in shown(dataset):
        mask = val.mask(index)
        for folder, predict in zip((baseline.folder, run.folder), predictors.values(), strict=True):
            guess, row = predict(val[index].image()), next(rows)
            scores = [iou([(mask, guess)], c) for c in np.unique(mask[mask > 0])]
            assert (int(row["image"]), row["run"]) == (val[index].image_id, str(folder))
            assert float(row["miou"]) == pytest.approx(np.mean(scores))
            assert float(row["pixel_accuracy"]) == pytest.approx((mask == guess)[mask > 0].mean())
    assert next(rows, None) is None


def test_pixels_are_drawn_from_the_largest_classes(written, dataset, predictors):
    rows, sample = read(written / "pixel_embeddings.csv"), dataset.split("val")[shown(dataset)[0]]
    guess = predictors["run"](sample.image())
    counts = Counter(sample.mask[sample.mask > 0].tolist())
    largest = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:12])
    pixels, stars = ([row for row in rows if row["kind"] == kind] for kind in ("pixel", "class"))
    assert [int(row["class"]) for row in stars] == largest
    for row in pixels:
        at = int(row["row"]), int(row["column"])
        assert (sample.mask[at], guess[at]) == (int(row["class"]), int(row["predicted"]))
    drawn = Counter(int(row["class"]) for row in pixels)
    assert drawn == {c: min(counts[c], 300 // len(largest)) for c in largest}
    assert len({(row["row"], row["column"]) for row in pixels}) == len(pixels)
    assert "t-SNE, seed 5" in captions(written)["pixel_embeddings"]


def test_tsne_keeps_groups_together_and_pca_is_the_plane_of_greatest_variance():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 30)
    vectors = rng.normal(size=(3, 12))[groups] + 0.05 * rng.normal(size=(90, 12))
    method, flat = pixel_embeddings.flattened(vectors, "tsne", 1)
    apart = np.linalg.norm(flat[:, None] - flat, axis=2) + np.diag([np.inf] * 90)
    assert method == "tsne" and np.array_equal(groups[apart.argmin(axis=1)], groups)
    assert np.array_equal(flat, pixel_embeddings.flattened(vectors, "tsne", 1)[1])
    method, flat = pixel_embeddings.flattened(vectors, "pca", 0)
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    assert method == "pca" and np.allclose(np.abs(flat), np.abs(centred @ axes[:, [-1, -2]]))
    for size in ((2, 12), (3, 12), (5, 1)):
        assert pixel_embeddings.flattened(rng.normal(size=size), "tsne", 0)[1].shape == (size[0], 2)


def test_the_colours_are_principal_components(written, dataset, predictors):
    rows = read(written / "masks_and_embeddings.csv")
    val = dataset.split("val")
    outputs = [predictors["run"].outputs([val[row].image()])[0].flatten(1).numpy().T for row in shown(dataset)]
    pixels = np.concatenate(outputs).astype(np.float64)
    centred = pixels - pixels.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    weights = np.array([[float(row[f"weight_{n}"]) for n in range(1, pixels.shape[1] + 1)] for row in rows])
    assert [row["component"] for row in rows] == ["mean", "red", "green", "blue"]
    assert np.allclose(weights[0], pixels.mean(axis=0), atol=1e-6)
    for row, vector, n in zip(rows[1:], weights[1:], (-1, -2, -3), strict=True):
        assert float(row["variance_share"]) == pytest.approx(variances[n] / variances.sum(), rel=1e-3)
        assert abs(vector @ axes[:, n]) == pytest.approx(1, abs=1e-4) and vector[np.abs(vector).argmax()] > 0
        values = centred @ vector
        assert (values < float(row["low"])).mean() == pytest.approx(0.01, abs=2e-3)
        assert (values > float(row["high"])).mean() == pytest.approx(0.01, abs=2e-3)


def test_the_dendrogram_joins_the_nearest_groups(written, embeddings, images):
    rows = read(written / "dendrogram.csv")
    frequent = sorted(sorted((c for c in range(1, 1285) if images[c - 1]), key=lambda c: (-images[c - 1], c))[:100])
    groups = {str(c): [c - 1] for c in frequent}
    for row in rows:
        distances = {}
        names = [*groups]
        for place, a in enumerate(names):
            for b in names[:place]:
                between = embeddings[groups[a], None] - embeddings[groups[b]]
                distances[frozenset((a, b))] = np.sqrt((between**2).sum(axis=-1)).mean()
        least = min(distances.values())
        assert float(row["distance"]) == pytest.approx(least, rel=1e-9)
        assert distances[frozenset((row["first"], row["second"]))] == pytest.approx(least, rel=1e-9)
        groups[row["merge"]] = groups.pop(row["first"]) + groups.pop(row["second"])
        assert int(row["classes"]) == len(groups[row["merge"]])
    assert len(groups) == 1 and len(rows) == len(frequent) - 1


def test_each_class_is_in_the_cluster_with_the_nearest_centre(written, embeddings, images):
    rows, trained = read(written / "clusters.csv"), np.flatnonzero(images)
    label = {int(row["class"]) - 1: int(row["cluster"]) for row in rows}
    assert sorted(label) == trained.tolist() and len(rows) == len(label)
    labels, vectors = np.array([label[c] for c in trained.tolist()]), embeddings[trained]
    assert {*labels.tolist()} == {*range(1, CLUSTERS + 1)} and (np.diff(np.bincount(labels)[1:]) <= 0).all()
    centres = np.stack([vectors[labels == n].mean(axis=0) for n in range(1, CLUSTERS + 1)])
    distances = np.linalg.norm(vectors[:, None] - centres, axis=2)
    assert np.array_equal(distances.argmin(axis=1) + 1, labels)
    own = dict(zip(trained.tolist(), distances.min(axis=1).tolist(), strict=True))
    for row in rows:
        assert float(row["distance_to_centre"]) == pytest.approx(own[int(row["class"]) - 1])
        assert int(row["classes_in_cluster"]) == (labels == int(row["cluster"])).sum()
    assert (distances.min(axis=1) ** 2).sum() < 1.05 * naive_clustering(vectors)


def naive_clustering(embeddings):
    """The least sum of squared distances after Lloyd's algorithm from random classes, of three starts."""
    rng, sums = np.random.default_rng(0), []
    for _ in range(3):
        centres = embeddings[rng.choice(len(embeddings), CLUSTERS, replace=False)]
        for _ in range(30):
            labels = np.linalg.norm(embeddings[:, None] - centres, axis=2).argmin(axis=1)
            centres = [embeddings[labels == n].mean(axis=0) if (labels == n).any() else centres[n] for n in range(CLUSTERS)]
        sums.append((np.linalg.norm(embeddings - np.array(centres)[labels], axis=1) ** 2).sum())
    return min(sums)


def test_there_are_as_many_clusters_as_different_embeddings():
    found = clusters.cluster(np.array([[0.0, 1], [1, 0], [0, 1], [0, 1], [1, 0], [2, 2]]), 70, 0)
    assert [one.members.tolist() for one in found] == [[0, 2, 3], [1, 4], [5]]
    assert all(one.distances.tolist() == [0.0] * len(one.members) for one in found)


def test_of_many_classes_the_most_frequent_are_in_the_dendrogram():
    images = np.random.default_rng(0).integers(0, 30, 1284)
    wanted = sorted(sorted(range(1284), key=lambda c: (-images[c], c))[:100])
    assert dendrogram._most_frequent(images).tolist() == wanted


def test_the_shared_classes_are_those_of_the_data_set(written):
    rows = read(written / "shared_classes.csv")
    assert len(rows) == 20 and {row["source"] for row in rows} == {"stuff", "lvis"} and any(row["image"] for row in rows)


def test_what_cannot_be_drawn_is_left_out_with_a_sentence(run, baseline, dataset, tmp_path, monkeypatch):
    said = ess("analyze", run.folder, "--out", tmp_path / "a", "--device", "cpu", "--clusters", 3).stderr
    assert "dendrogram and shared_classes were left out, because no data set was given" in said
    assert {path.stem for path in (tmp_path / "a").iterdir()} == {"clusters", "figures"}
    index = json.loads((tmp_path / "a" / "figures.json").read_text())
    assert index["data"] is None and index["left_out"][0] in said
    sentences = []
    only = [name for name in MAKERS if name not in ("predictions", "miou_by_frequency", "confused_pairs")]
    assert collect(baseline, dataset, tmp_path / "b", Options(device="cpu", only=only), left_out=sentences.append) == []
    dense, unsourced = sentences
    assert dense.startswith(f"{', '.join(only[:4])} and clusters were left out, because the run was trained with --loss dense")
    assert unsourced.startswith("shared_classes was left out, because it needs --coco and --lvis")
    for module in ("cluster", "decomposition", "manifold"):
        monkeypatch.setitem(sys.modules, f"sklearn.{module}", None)
    only = ["--only", "clusters", "--only", "pixel_embeddings"]
    said = ess("analyze", run.folder, dataset.folder, "--out", tmp_path / "c", "--device", "cpu", *only).stderr
    sentence = "because scikit-learn is not installed: pip install 'cocolvis-ess[figures]'"
    assert f"clusters and pixel_embeddings were left out, {sentence}" in said.splitlines()


def test_wrong_usage_and_other_classes_are_refused(run, sample, tree, tmp_path):
    assert ess("analyze", run.folder, "--out", tmp_path / "a", "--coco", "x", code=2)
    said = ess("analyze", run.folder, "--out", tmp_path / "a", "--only", "tail", code=1).stderr
    assert "there is no figure 'tail'; expected predictions, masks_and_embeddings" in said
    said = ess("analyze", run.folder, sample.data, "--out", tmp_path / "a", "--split", "test", code=1).stderr
    assert "has no split 'test'" in said and not (tmp_path / "a").exists()


def test_counts_that_exist_are_used(run, dataset, tmp_path, monkeypatch):
    counts = Confusion(1284, matrix=True)
    counts.update(np.array([0, 1, 2]), np.array([0, 2, 2]))
    monkeypatch.setattr(Analysis, "count", lambda *_, **__: pytest.fail("counted again"))
    options = Options(only=["confused_pairs", "miou_by_frequency"], counts=counts, device="cpu")
    collect(run, dataset, tmp_path, options)
    (row,) = read(tmp_path / "confused_pairs.csv")
    assert (row["truth"], row["predicted"], row["pixels"], row["share_of_truth"]) == ("2", "3", "1", "1.0")


def test_a_run_that_was_loaded_before_is_used_with_its_views(run, baseline, dataset, monkeypatch):
    given = Predictor.from_run(run.folder, "cpu", inference=Inference(flip=True))
    found = Analysis(run, dataset, Options(predictor=given, device="cpu", limit=1))
    assert found.predictor_of(baseline).inference == given.inference
    monkeypatch.setattr(Predictor, "from_run", lambda *_: pytest.fail("loaded again"))
    assert found.predictor.model is given.model and found.predictor.inference == given.inference
    assert found.confusion.images == 1
    assert all(np.array_equal(image.prediction, given(image.picture)) for image in found.shown)


def test_pairs_of_very_many_classes_are_not_counted(run, dataset, tmp_path, monkeypatch):
    for module in ("analysis", "confused_pairs"):
        monkeypatch.setattr(f"ess.figures.{module}.LARGEST_MATRIX", 1283)
    options, sentences = Options(only=["confused_pairs", "miou_by_frequency"], device="cpu", limit=1), []
    (figure,) = collect(run, dataset, tmp_path, options, left_out=sentences.append)
    assert figure.name == "miou_by_frequency" and Analysis(run, dataset, options).confusion.matrix is None
    said = "confused_pairs was left out, because pairs of classes are counted for at most 1,283, and there are 1,284"
    assert sentences == [said]


def test_the_images_with_the_most_large_classes_come_first(dataset):
    from cocolvis.inspection.stats import Counts

    assert busiest(Counts.read(Dataset.open(dataset.folder).split("val")))[:SHOWN] == shown(dataset)


def test_a_data_set_without_pictures_gives_the_figures_that_need_none(run, sample, tmp_path):
    bare, sentences = sample.rebuild(tmp_path / "bare", images="none"), []
    only = ["predictions", "confused_pairs", "class_lengths"]
    (figure,) = collect(run, bare, tmp_path / "out", Options(device="cpu", only=only), left_out=sentences.append)
    assert figure.name == "class_lengths"
    assert sentences == [
        "predictions and confused_pairs were left out, because the data set was built with --images none",
    ]


def test_named_images_are_shown(run, dataset):
    samples = [dataset.split("train")[3], dataset.split("val")[0]]
    found = Analysis(run, dataset, Options(device="cpu", images=[sample.image_id for sample in samples])).shown
    assert [image.sample.path for image in found] == [sample.path for sample in samples]
    assert all(np.array_equal(image.picture, sample.image()) for image, sample in zip(found, samples, strict=True))


@pytest.mark.parametrize("split", ["train", "val"])
def test_of_two_images_with_the_same_id_that_of_the_split_is_shown(run, tree, split):
    for folder in ("train", "val"):
        tree.image(1, folder, f"{folder}2017")
        tree.stuff(1, 92, box(0, 0, 8, 4), f"{folder}2017")
    (shown,) = Analysis(run, tree.build(), Options(device="cpu", split=split, images=[1])).shown
    assert shown.sample.path == f"{split}2017/000000000001.jpg"


def test_another_run_that_does_not_fit_is_refused_before_anything_is_predicted(run, baseline, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "from_run", lambda *_: pytest.fail("loads a model"))
    renamed = dataclasses.replace(run.vocabulary[1284], name="timber")
    other = Run(baseline.folder, baseline.config, Vocabulary([*run.vocabulary.classes[:-1], renamed]))
    for options in (Options(also=[baseline, other]), Options(baseline=other)):
        with pytest.raises(DataError, match=f"{other.folder}: has other classes than {run.folder}"):
            collect(run, dataset, tmp_path / "out", options)
    for options in (Options(also=[baseline], checkpoint="best"), Options(baseline=baseline, checkpoint="best")):
        with pytest.raises(DataError, match=f"{baseline.folder}: no checkpoint was evaluated"):
            collect(run, dataset, tmp_path / "out", options)


@pytest.mark.linux  # other systems refuse such names
def test_a_run_whose_name_is_not_utf8_is_drawn_and_listed_with_escapes(run, dataset, tmp_path, monkeypatch):
    """Safetensors files are only found from within its folder."""
    odd = shutil.copytree(run.folder, tmp_path / os.fsdecode(b"run \xff"))
    monkeypatch.chdir(odd)
    only = ["--only", "predictions", "--only", "miou_by_frequency", "--baseline", ".", "--limit", 1, "--device", "cpu"]
    ess("analyze", ".", dataset.folder, "--out", tmp_path / "out", *only)
    assert {row["run"] for row in read(tmp_path / "out" / "miou_by_frequency.csv")} == {r"run \udcff"}
    (axes,) = miou_curves._draw({odd.name: np.array([0.5])}, np.arange(1), "1 image").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [r" run \udcff: 0.500 at n = 1"]


def test_the_legend_of_the_curves_names_every_run():
    """Matplotlib leaves out labels that begin with an underscore."""
    ious = {"_old": np.array([0.5, 0.25]), "new": np.array([0.125, np.nan]), "_none": np.full(2, np.nan)}
    (axes,) = miou_curves._draw(ious, np.arange(2), "2 images").axes
    labels = [text.get_text().strip() for text in axes.get_legend().get_texts()]
    assert labels == ["_old: 0.375 at n = 2", "new: 0.125 at n = 2", "_none"]


def test_the_names_of_1284_classes_have_room():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = np.array([c.name for c in coco_lvis()])
    groups = np.array_split(np.random.default_rng(0).permutation(names), [3, 4, 150, *range(170, 1280, 17)])
    canvas = FigureCanvasAgg(clusters._draw([group.tolist() for group in groups], "how"))
    boxes = np.array([text.get_window_extent(canvas.get_renderer()).extents for text in canvas.figure.texts])
    left, bottom, right, top = boxes.T
    assert (
        (left >= 0).all()
        and (bottom >= 0).all()
        and right.max() <= canvas.figure.bbox.x1
        and top.max() <= canvas.figure.bbox.y1
    )
    beside = (left[:, None] < right) & (left < right[:, None])
    above = (bottom[:, None] + 1 < top) & (bottom + 1 < top[:, None])
    assert not np.triu(beside & above, 1).any() and len(boxes) > 300
    shown = ", ".join(text.get_text() for text in canvas.figure.texts)
    assert "and 106 more" in shown and all(name in shown for name in names if name in set(groups[3]) and len(name) <= 40)


def test_stars_in_one_place_have_their_numbers_apart():
    points = np.random.default_rng(0).normal(size=(60, 2))
    stars = np.concatenate([points[:3], points[:3], points[:1] + 1e-3, points[:3]])
    offsets = np.array(pixel_embeddings.label_offsets(points, stars))
    centres = stars * 360 / np.ptp(points, axis=0)
    numbers = centres + offsets
    between = np.linalg.norm(numbers[:, None] - numbers, axis=2) + np.diag([np.inf] * len(stars))
    assert between.min() > 12 and np.linalg.norm(offsets, axis=1).max() < 50
    assert np.linalg.norm(numbers[:, None] - centres, axis=2).min() > 12
