"""Pretrained weights of encoders: from the hub's cache, the hub, or a file; never by unpickling."""

from pathlib import Path

import torch

from cocolvis.errors import DataError


def encoder_weights(encoder: str, weights: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a whole timm model, name -> tensor: "imagenet" from the hub or its cache, else from a file.

    Nothing is unpickled. A DataError in one line, at once, when the hub cannot be reached, or the file does not fit.
    """
    if weights == "imagenet":
        return _read_weights(_hub_file(encoder))
    state = _read_weights(Path(weights))
    _check_weights(Path(weights), state, encoder)
    return state


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    if not path.is_file():
        raise DataError(f"{path}: no such weights file; expected 'imagenet', or a .safetensors or torch file of a timm encoder")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise DataError(f"{path}: cannot be read as weights ({reason}); expected a .safetensors or plain torch file") from None


def _check_weights(path: Path, state: dict[str, torch.Tensor], encoder: str) -> None:
    """A DataError when the file's names or shapes are not those of the timm model; the classifier does not count."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(encoder)
    classifier = model.pretrained_cfg["classifier"]
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith(f"{classifier}.")}
    theirs = {name: tuple(t.shape) for name, t in state.items() if not name.startswith(f"{classifier}.")}
    for what, names in (
        ("lacks", ours.keys() - theirs.keys()),
        ("has unknown", theirs.keys() - ours.keys()),
        ("has other shapes of", {name for name in ours if name in theirs and ours[name] != theirs[name]}),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise DataError(f"{path}: {what} {len(names)} of the tensors of timm's {encoder}: {shown}")


def _hub_file(encoder: str) -> Path:
    """The pretrained weights in the local hub cache, downloaded when they are not there but the hub can be reached."""
    import huggingface_hub as hub
    import timm

    repo, file = timm.get_pretrained_cfg(encoder).hf_hub_id, "model.safetensors"
    cached = hub.try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, file), timeout=3)  # answers at once where a download would retry long
        return Path(hub.hf_hub_download(repo, file))
    except Exception as error:
        cache = hub.constants.HF_HUB_CACHE
        raise DataError(
            f"ImageNet weights {repo}/{file} are neither in {cache} nor to be had from the hub ({type(error).__name__});"
            " use --weights none, or --weights FILE with a .safetensors file of timm's weights"
        ) from None
