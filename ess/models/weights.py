"""Loads pretrained weights of encoders from the hub, its cache or a file.

Those of the hub are safetensors. A torch file is a pickle, which only PyTorch's restricted unpickler reads.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from cocolvis.errors import DataError
from cocolvis.text import first_few

_SAFE_FILES = {"open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
"""The unusual name of a pickled file on the hub -> the name of the safetensors file in the same repository."""


def encoder_weights(encoder: str, weights: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a whole timm model, name -> tensor, from the hub or its cache ("imagenet") or from a file.

    A file that does not end in .safetensors is read by ``torch.load(weights_only=True)``. Raises DataError, without long
    retries, if the hub cannot be reached or the file does not fit.
    """
    path = _hub_file(encoder) if weights == "imagenet" else Path(weights)
    state = _read_weights(path)
    _check_weights(path, state, encoder)
    return state


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    if not os.path.isfile(path):
        raise DataError(f"{path}: no such weights file; expected 'imagenet', or a .safetensors or torch file of a timm encoder")
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise DataError(f"{path}: cannot be read as weights ({reason}); expected a .safetensors or plain torch file") from None


def _check_weights(path: Path, state: dict[str, torch.Tensor], encoder: str) -> None:
    """Raise DataError unless the names and shapes of the file are those of the timm model, its classifier aside.

    The model's own filter first translates the names of other projects and resizes position embeddings.
    """
    import timm

    with torch.device("meta"):
        model: Any = timm.create_model(encoder)
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        state = translate(dict(state), model) if translate else state
    except (KeyError, RuntimeError, AttributeError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: does not contain weights of timm's {encoder} ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None
    classifiers = model.pretrained_cfg["classifier"] or ()
    heads = tuple(f"{name.split('.')[0]}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith(heads)}
    theirs = {name: tuple(t.shape) for name, t in state.items() if not name.startswith(heads)}
    for what, names in (
        ("lacks", ours.keys() - theirs.keys()),
        ("has unknown", theirs.keys() - ours.keys()),
        ("has other shapes of", {name for name in ours if name in theirs and ours[name] != theirs[name]}),
    ):
        if names:
            shown = first_few(sorted(names), 3)
            raise DataError(f"{path}: {what} {len(names)} of the tensors of timm's {encoder}: {shown}")


def _hub_file(encoder: str) -> Path:
    """The pretrained weights in the local cache of the hub, downloaded if they are missing and the hub can be reached."""
    import huggingface_hub as hub
    import timm

    cfg = timm.get_pretrained_cfg(encoder)
    if cfg is None or not cfg.hf_hub_id:
        raise DataError(f"timm knows no weights of {encoder}: use --weights none, or --weights FILE")
    repo, file = cfg.hf_hub_id, _SAFE_FILES.get(cfg.hf_hub_filename or "", "model.safetensors")
    cached = hub.try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        hub.get_hf_file_metadata(
            hub.hf_hub_url(repo, file), timeout=3
        )  # fails at once, whereas a download would retry for long
        return Path(hub.hf_hub_download(repo, file))
    except Exception as error:
        cache = hub.constants.HF_HUB_CACHE
        raise DataError(
            f"ImageNet weights {repo}/{file} are not in {cache} and cannot be downloaded from the hub ({type(error).__name__});"
            " use --weights none, or --weights FILE with a .safetensors file of timm's weights"
        ) from None
