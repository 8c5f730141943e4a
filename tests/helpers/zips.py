"""Writing the official zip archives from an unpacked tree, and damaging them."""

import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


class _Stream:
    """A file that cannot seek, so that zipfile writes the sizes of members after their bytes only."""

    def __init__(self, file):
        self._file = file

    def write(self, content):
        return self._file.write(content)

    def flush(self):
        self._file.flush()


def write_zip(path: Path, files: dict[str, Path | bytes], packing: int = DEFLATED, *, zip64=False, streamed=False) -> Path:
    """Write ``files``, member name -> file or content, as a zip; ``zip64`` puts all sizes and offsets into 64-bit fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = mock.patch.object(zipfile, "ZIP64_LIMIT", 0 if zip64 else zipfile.ZIP64_LIMIT)
    with limit, path.open("wb") as file, zipfile.ZipFile(_Stream(file) if streamed else file, "w", packing) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, (2017, 9, 1, 0, 0, 0))
            info.compress_type = packing
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(content if isinstance(content, bytes) else content.read_bytes())
    return path


def pictures(coco: Path, split: str) -> dict[str, Path | bytes]:
    """The members of train2017.zip or val2017.zip."""
    folder = coco / f"{split}2017"
    return {f"{folder.name}/": b""} | {f"{folder.name}/{path.name}": path for path in sorted(folder.iterdir())}


def stuff(coco: Path, inside: str = "", maps: bool = False) -> dict[str, Path | bytes]:
    """The members of a stuff archive: JSON in the folder ``inside``, optionally with the pixel ``maps`` that COCO ships."""
    names = [f"stuff_{split}2017" for split in ("train", "val")]
    found = {f"{inside}{name}.json": coco / "annotations" / f"{name}.json" for name in names}
    return found | {f"{inside}{name}_pixelmaps.zip": b"PK\x05\x06" + bytes(18) for name in names if maps}


def lvis(folder: Path, split: str) -> dict[str, Path | bytes]:
    """The member of lvis_v1_train.json.zip or lvis_v1_val.json.zip."""
    return {f"lvis_v1_{split}.json": folder / f"lvis_v1_{split}.json"}


def write_all(built, root: Path, **how) -> None:
    """Write the five archives, as they are downloaded, to coco/ and lvis/ in ``root``."""
    for split in ("train", "val"):
        write_zip(root / "coco" / f"{split}2017.zip", pictures(built.coco, split), **how)
        write_zip(root / "lvis" / f"lvis_v1_{split}.json.zip", lvis(built.lvis, split), **how)
    write_zip(root / "coco" / "stuff_trainval2017.zip", stuff(built.coco), **how)


_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
"""A member's entry in the central directory; the constants below are indices of its fields."""

FLAGS, PACKING, CRC, PACKED, SIZE, OFFSET = 5, 6, 9, 10, 11, 18


def edit_entries(path: Path, change: Callable[[list], None], names: Iterable[str] | None = None) -> None:
    """Apply ``change`` to the fields of entries in the central directory: of all members, or those with these names."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at, entries = archive.start_dir, len(archive.infolist())
    for _ in range(entries):
        fields = list(_CENTRAL.unpack_from(content, at))
        following = at + _CENTRAL.size + sum(fields[12:15])
        name = content[at + _CENTRAL.size :][: fields[12]].decode()
        if names is None or name in names:
            change(fields)
            _CENTRAL.pack_into(content, at, *fields)
        at = following
    path.write_bytes(content)


def edit_zip64(path: Path, name: str, **values: int) -> None:
    """Change ``size``, ``packed`` or ``offset`` in the 64-bit extra field of a member; that of the first has no offset."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = content.index(name.encode(), archive.start_dir) + len(name)
    for field, value in values.items():
        struct.pack_into("<Q", content, at + 4 + 8 * ("size", "packed", "offset").index(field), value)
    path.write_bytes(content)


def place_of(path: Path, name: str) -> tuple[int, int]:
    """(offset, length) of a member's packed bytes."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        info = archive.getinfo(name)
        return member._orig_compress_start, info.compress_size


def flip(path: Path, at: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ 0xFF]))
