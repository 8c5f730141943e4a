"""Computes the features of a frozen encoder once, for whole pictures, and stores them for training and evaluation."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from cocolvis.disk.files import Unwritable, reason
from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.text import human_size
from ess.config import Config
from ess.data.damage import with_advice
from ess.data.feature_store import VERSION, FeatureStore, Maps, SplitFeatures
from ess.data.transforms import normalize
from ess.device import explain_out_of_memory
from ess.models.network import SegmentationModel

ARCHES = ("linear", "deeplabv3plus")
"""The architectures whose decoders read features alone; the others also read the picture, or tokens that cannot be cropped."""

_REQUIRED = {"encoder_lr": 0, "scale_min": 1, "scale_max": 1, "flip": 0, "color_jitter": 0}
"""The settings with which the features of a picture are always the same."""

_INTERVAL = 10.0
"""Seconds between two lines of progress."""

log = logging.getLogger("ess")


class _Picture(NamedTuple):
    """An image of a split and the SHA-256 of its encoded bytes."""

    split: Split
    number: int
    key: bytes


def check_settings(config: Config) -> None:
    """Raise DataError, naming the settings, unless the features of a picture stay the same throughout the training."""
    wrong = {name: getattr(config, name) for name, needed in _REQUIRED.items() if getattr(config, name) != needed}
    if wrong:
        needed = ", ".join(f"{name} {_REQUIRED[name]}" for name in wrong)
        given = ", ".join(str(value) for value in wrong.values())
        raise DataError(f"stored features need {needed}, not {given}: they are those of whole pictures without augmentation")
    if config.arch not in ARCHES:
        raise DataError(
            f"stored features need arch {' or '.join(ARCHES)}, not {config.arch}, whose decoder reads more than them"
        )


def store_features(
    folder: Path,
    dataset: Dataset,
    images: Mapping[str, Iterable[int]],
    model: SegmentationModel,
    config: Config,
    team: Accelerator,
) -> dict[str, SplitFeatures]:
    """Store the features of some images of each split below ``folder``, unless they are there, and return them by split.

    ``model`` has a frozen encoder. Each process of the team computes its share. Damaged images are left out with the setting
    ``skip_damaged``. Raises DataError if one is damaged otherwise, if the disk is too small, or if the settings do not fit.
    """
    maps = feature_maps(model, team.device)
    if config.crop % model.multiple:
        raise DataError(f"crop is {config.crop}; stored features of {config.encoder} need a multiple of {model.multiple}")
    store = FeatureStore(folder / encoder_digest(model, config, maps), maps)
    store.find()
    found: dict[str, SplitFeatures] = {}
    wanted: dict[bytes, tuple[int, _Picture]] = {}
    for name, indices in images.items():
        split = dataset.split(name)
        keys: list[bytes | None] = [None] * len(split)
        for index in indices:
            keys[index], size = _digest(split, index, maps, model, config)
            if (key := keys[index]) is not None:
                wanted.setdefault(key, (size, _Picture(split, index, key)))
        found[name] = SplitFeatures(store, keys)
    missing = [size for key, (size, _) in wanted.items() if key not in store]
    there = f", {len(wanted) - len(missing)} of them are there already" if len(missing) < len(wanted) else ""
    total = sum(size for size, _ in wanted.values())
    log.info("features of %d pictures: %s in %s%s", len(wanted), human_size(total), folder, there)
    _check_disk(store.folder, sum(missing))
    # Shares of all pictures, not of the missing ones: which are missing depends on when a process looks.
    share = [picture for _, picture in wanted.values()][team.process_index :: team.num_processes]
    _compute([picture for picture in share if picture.key not in store], store, model, config, team.device)
    team.wait_for_everyone()
    store.find()
    return found


def feature_maps(model: SegmentationModel, device: torch.device) -> Maps:
    """The maps that a model's frozen encoder gives."""
    side = model.multiple
    with torch.inference_mode():
        features = model.encode(torch.zeros(1, 3, side, side, device=device))
    return Maps(tuple(each.shape[1] for each in features), tuple(side // each.shape[2] for each in features))


def encoder_digest(model: SegmentationModel, config: Config, maps: Maps) -> str:
    """The SHA-256, in hexadecimal, of what features depend on besides the picture: encoder, weights and preprocessing."""
    statistics = [None if each is None else each.flatten().tolist() for each in (model.scale, model.shift)]
    depths = [*maps.strides, *getattr(model.encoder, "blocks", ())]
    about = [VERSION, config.encoder, config.arch, depths, maps.channels, model.multiple, model.smallest, statistics]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(split: Split, index: int, maps: Maps, model: SegmentationModel, config: Config) -> tuple[bytes | None, int]:
    """(the SHA-256 of a picture's encoded bytes, the size of its features); (None, 0) for a damaged one that is skipped."""
    try:
        sample = split[index]
    except DamagedImage as error:
        if not config.skip_damaged:
            raise with_advice(error) from None
        return None, 0
    height, width = map(model.padded, sample.size)
    return hashlib.sha256(sample.content).digest(), maps.bytes(height, width)


def _check_disk(folder: Path, needed: int) -> None:
    """Raise DataError if the disk of ``folder``, which is created, does not have the ``needed`` bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise Unwritable(f"{folder}: cannot be written: {reason(error)}") from None
    if needed > free:
        raise DataError(f"{folder}: the features need {human_size(needed)}, but the disk has {human_size(free)} free")


def _compute(
    pictures: list[_Picture], store: FeatureStore, model: SegmentationModel, config: Config, device: torch.device
) -> None:
    """Compute and store the features of pictures. An interruption keeps those that are finished."""
    begun = said = time.monotonic()
    try:
        for done, (split, index, key) in enumerate(pictures, 1):
            try:
                store.add(key, _features(split, index, store.maps, model, device))
            except DamagedImage as error:
                if not config.skip_damaged:
                    raise with_advice(error) from None
            now = time.monotonic()
            if now - said >= _INTERVAL or done == len(pictures):
                said, speed = now, done / max(now - begun, 1e-9)
                eta = timedelta(seconds=round((len(pictures) - done) / speed))
                log.info("features %d/%d  %.1f images/s  ETA %s", done, len(pictures), speed, eta)
    finally:
        store.flush()


@torch.inference_mode()
def _features(split: Split, index: int, maps: Maps, model: SegmentationModel, device: torch.device) -> list[np.ndarray]:
    """The maps (C, h, w) float16 of one picture.

    Raises DataError if a value does not fit float16, or if the picture does not fit the memory of the device.
    """
    sample = split[index]
    what = "image {} is {} x {} pixels, and --cache-features encodes it whole".format(sample.image_id, *sample.size)
    with explain_out_of_memory(f"{what}; choose a smaller --encoder, or leave out --cache-features"):
        pixels = torch.from_numpy(np.require(sample.image(), requirements=("C", "W"))).permute(2, 0, 1)[None].to(device)
        found = [each[0].to(torch.float16).cpu().numpy() for each in model.encode(normalize(pixels))]
    if not all(np.isfinite(each).all() for each in found):
        raise DataError(sample.fault_line("its features do not fit float16; train without stored features"))
    return found
