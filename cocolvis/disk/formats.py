"""Names the format of a file from its first bytes, for messages about files that are not what was expected."""

_PILLOW = {
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a BigTIFF",
    b"MM\0+": "a BigTIFF",
    b"GIF8": "a GIF",
    b"P5": "a PGM",
    b"P6": "a PPM",
}
"""Formats that `ess predict` reads with Pillow; a WebP has its name after its size."""

_FOREIGN = {
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip archive, as .npz is",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG whose line ends were changed, as FTP in text mode does",
    b"version https://git-lfs": "a pointer of Git LFS, in place of the file: fetch it with `git lfs pull`",
}

_BRANDS = {b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIC", b"msf1": "a HEIC", b"avif": "an AVIF", b"avis": "an AVIF"}
"""Brands of files in the container of MPEG-4, which follow the type of its first box."""

_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<svg")

FORMAT_BYTES = 512
"""The bytes at the start of a file that decide its format."""


def foreign_format(content: bytes) -> str | None:
    """The format of a file that is not a picture for any command here, with its article; None if it is not known."""
    head = content[:FORMAT_BYTES]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if len(head) == FORMAT_BYTES and not any(head):
        return "a file that begins with zeros, as a crash or a recovery leaves them"
    if head.lstrip().lower().startswith(_PAGES):
        return "a web page or an XML file"
    return next((name for start, name in _FOREIGN.items() if head.startswith(start)), None)


def format_name(content: bytes) -> str | None:
    """The format of a file other than JPEG and PNG, with its article; None if it is not known."""
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "a WebP"
    return next((name for start, name in _PILLOW.items() if content.startswith(start)), None) or foreign_format(content)
