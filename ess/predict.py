"""Images to class ids with a trained model: NumPy in and out."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cocolvis.errors import DataError
from cocolvis.images import decode_rgb, write_png
from cocolvis.render import enlarge, overlay
from cocolvis.vocabulary import Vocabulary
from ess.checkpoint import Run
from ess.data import to_class_ids
from ess.device import choose_device, explain_out_of_memory
from ess.models import SegmentationModel, model_from_config
from ess.transforms import normalize


class Predictor:
    """A model with the vocabulary that gives its classes their names.

    ``predictor(image)`` takes one picture of any size, (H, W, 3) uint8 RGB, and returns (H, W) uint16 class ids 1..C.
    """

    def __init__(self, model: SegmentationModel, vocabulary: Vocabulary, device: torch.device):
        self.model = model
        self.vocabulary = vocabulary
        self.device = device

    @classmethod
    def from_run(cls, folder: str | Path, device: str = "auto", checkpoint: str = "newest") -> "Predictor":
        """The "newest" or "best" checkpoint of a run, ready to predict. Touches no network."""
        run = Run.open(folder)
        chosen = choose_device(device)
        model = model_from_config(run.config, len(run.vocabulary), weights=None)
        run.load(model, checkpoint)
        return cls(model.to(chosen).eval(), run.vocabulary, chosen)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"the image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
        with explain_out_of_memory(
            f"the image is {image.shape[0]} x {image.shape[1]}; predict a smaller one, or on --device cpu"
        ):
            pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(self.device)
            labels = self.model.predict(normalize(pixels))[0]
        return to_class_ids(labels.cpu().numpy())


def predict_files(
    predictor: Predictor,
    paths: Sequence[Path],
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``out/NAME.png`` (16-bit class ids, the picture's own size) and ``out/NAME_overlay.png`` for each picture.

    Names and presence are checked before any work; a picture that cannot be decoded is a DataError that leaves the earlier
    results whole.
    """
    names = Counter(path.stem for path in paths)
    for path in paths:
        if names[path.stem] > 1:
            raise DataError(f"{path}: {names[path.stem]} pictures would be written as {path.stem}.png; predict them one by one")
        if not path.is_file():
            raise DataError(f"{path}: is no file; expected a picture (JPEG or PNG)")
    for done, path in enumerate(paths, 1):
        try:
            image = decode_rgb(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}; expected a JPEG or PNG") from None
        mask = predictor(image)
        write_png(out / f"{path.stem}.png", mask)
        write_png(out / f"{path.stem}_overlay.png", overlay(*enlarge(image, mask), predictor.vocabulary))
        progress(done, len(paths))
