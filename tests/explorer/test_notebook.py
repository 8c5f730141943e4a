"""What objects show of themselves in a notebook: their content, small, and with every text escaped."""

import base64
import html
import re
from dataclasses import replace

import cv2
import numpy as np

from cocolvis import notebook
from cocolvis.palette import palette
from cocolvis.vocabulary import ClassInfo, Vocabulary

MARKUP = "<script>alert(1)</script>"


def test_a_sample_shows_its_picture_its_mask_and_its_classes(dataset):
    sample = dataset.split("val")[0]
    shown = sample._repr_html_()
    content = base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = sample.mask.shape
    assert pixels.shape == (height, 2 * width, 3) and np.array_equal(pixels[:, :width], sample.image())
    assert np.array_equal(pixels[:, width:], palette(1284)[sample.mask])
    largest = int(np.bincount(sample.mask.ravel())[1:].argmax()) + 1
    assert f">{(sample.mask == largest).sum():,}<" in shown and str(sample.image_id) in shown
    broken = replace(sample, content=b"", path=MARKUP)._repr_html_()
    assert "<img" in broken and MARKUP not in broken and html.escape(MARKUP) in broken


def test_a_data_set_and_a_vocabulary_are_tables(dataset):
    shown = dataset._repr_html_()
    assert all(f">{name}<" in shown and f">{images:,}<" in shown for name, images in dataset.splits.items())
    classes = dataset.vocabulary._repr_html_()
    assert "1,284 classes" in classes and html.escape(dataset.vocabulary[1].name) in classes and len(classes) < 20_000
    assert html.escape(MARKUP) in Vocabulary([ClassInfo(1, MARKUP, "stuff", None, None, {})])._repr_html_()


def test_a_predictor_names_its_classes_and_its_step(untrained_run):
    from ess.inference.predictor import Predictor

    shown = Predictor.from_run(untrained_run, "cpu")._repr_html_()
    assert "1,284" in shown and "<td" in shown and "cpu" in shown


def test_large_and_empty_masks_become_small_pictures():
    for shape in ((1, 1), (3000, 10), (10, 3000)):
        shown = notebook.pictures(None, np.ones(shape, np.uint16))
        content = base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])
        assert max(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape) <= 320
