"""Label files: PNGs of every kind, MATLAB files, and broken and hostile ones."""

import base64
import random
import struct
import tracemalloc
import zlib
from collections import Counter
from io import BytesIO

import cv2
import numpy as np
import pytest
from import_trees import write_matlab
from made_pngs import chunk, header, join, rows
from PIL import Image

from cocolvis.importers.labelled import LabelOptions, LabelTask
from cocolvis.importers.tree import LabelledImage
from cocolvis.pictures.label_files import label_pixels, open_labels, to_classes

SCIPY = {
    "compressed": "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMTI6MjI6MjEgMjAyNgAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAATgAAAHic42NgYNgAxGxAzAHE"
    "jAwQwArlM0HFGKH85MSCksz8vGI+INsCSR8Lmj5GKBtmngCUn6iQnFgCpInRz4GmH8TPz1NIVMhNLAEANGcJyQ8AAAA9AAAAeJzj"
    "Y2Bg8ABiNiDmAGJuBghghfKZgZgFiBmBMBjKlgCrcGBoYNjGEMAwgUGBIYFhAYMBQwHDBgYAa14Fuw8AAABNAAAAeJzjY2BgiABi"
    "NiDmAGJuBghghfKZgZgFiBmBmA+Ii1LTM/PzfBMLgktK09IgchJgeUeGRobtDIEMExkUGRIZFjIYMhQybGQAAFxKCzs=",
    "plain": "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMTI6MjI6MjEgMjAyNgAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0OAAAAsAAAAAYAAAAIAAAAAQAAAAAA"
    "AAAFAAAACAAAAAIAAAABAAAAAQAAAAgAAABjYXB0aW9ucw4AAAA4AAAABgAAAAgAAAAEAAAAAAAAAAUAAAAIAAAAAQAAAAUAAAAB"
    "AAAAAAAAABAAAAAFAAAAYSBjYXQAAAAOAAAAOAAAAAYAAAAIAAAABAAAAAAAAAAFAAAACAAAAAEAAAAIAAAAAQAAAAAAAAAQAAAA"
    "CAAAAG9uIGEgbWF0DgAAAEgAAAAGAAAACAAAAAsAAAAAAAAABQAAAAgAAAADAAAABAAAAAEAAQBTAAAABAAAABgAAAAAAEAAgAC2"
    "AFAAkAAgAGAAoAAwAHAAsAAOAAAAWAAAAAYAAAAIAAAACwAAAAAAAAAFAAAACAAAAAMAAAAEAAAAAQAAAA4AAAByZWdpb25NYXBT"
    "dHVmZgAABAAAABgAAAABAEEAgQC3AFEAkQAhAGEAoQAxAHEAsQA=",
}
"""Written by scipy.io.savemat 1.17: a cell array of two captions, S, and regionMapStuff, which is S + 1."""


def png(bits: int, colour: int, values: np.ndarray, *chunks: tuple[bytes, bytes], kept: int | None = None) -> bytes:
    """A PNG assembled by hand: ``values`` (H, W) of ``bits`` bits, preceded by ``chunks``, of which ``kept`` bytes are kept."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    if bits == 16:
        rows = [b"\0" + row.astype(">u2").tobytes() for row in values]
    else:
        spread = (values[..., None] >> np.arange(bits)[::-1]) & 1
        rows = [b"\0" + np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in spread]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", head),
        *(chunk(*c) for c in chunks),
        chunk(b"IDAT", zlib.compress(b"".join(rows))[:kept]),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_numbers_in_a_png_are_what_was_stored(bits, colour):
    if (bits, colour) == (16, 3):
        return
    values = np.random.default_rng(bits).integers(0, 2**bits, (11, 13))
    values[0, :2] = 0, 2**bits - 1
    palette = (b"PLTE", bytes(range(255, -1, -1)) * 3) if bits == 8 else (b"PLTE", bytes(3 * 2 ** min(bits, 8)))
    found = open_labels(
        png(bits, colour, values, *([palette, (b"tRNS", b"\0\x80")] if colour else [(b"tRNS", b"\0\1")]))
    ).read()
    assert found.dtype == (np.uint16 if bits == 16 else np.uint8) and np.array_equal(found, values)


def coloured(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, channels), which are gray with alpha, RGB or RGBA."""
    bits, colour = 8 * pixels.itemsize, {2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    lines = (b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    return join(header(*pixels.shape[:2], bits, colour), (b"IDAT", zlib.compress(b"".join(lines))))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_equal_channels_are_one_channel_of_labels(channels, dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (11, 13)).astype(dtype)
    pixels = np.repeat(values[..., None], channels, axis=2)
    if channels in (2, 4):
        pixels[..., -1] = np.iinfo(dtype).max
    found = open_labels(coloured(pixels) + b"behind the end").read()
    assert found.dtype == np.dtype(dtype) and np.array_equal(found, values)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colours_and_transparency_are_refused_with_advice(dtype):
    pixels = np.zeros((11, 13, 4), dtype)
    pixels[..., 3] = np.iinfo(dtype).max
    pixels[:2, :, 0], pixels[2:3, :, 1] = 200, 7
    for seen in (pixels, pixels[..., :3]):
        with pytest.raises(ValueError, match=r"is in 3 colours; .* must be mapped to the number of its class"):
            open_labels(coloured(seen)).read()
    for channels in (2, 4):
        clear = np.repeat(pixels[..., 3:], channels, axis=2)
        clear[0, :5, -1] = 0
        with pytest.raises(ValueError, match="alpha channel in which 5 pixels are not opaque"):
            open_labels(coloured(clear)).read()


def test_optional_chunks_do_not_change_labels_of_several_channels():
    pixels = np.repeat(np.arange(30, dtype="u1").reshape(5, 6, 1), 3, axis=2)
    start = coloured(pixels)[:33]
    rest = coloured(pixels)[33:]
    odd = chunk(b"tRNS", bytes(6)) + chunk(b"gAMA", b"\0\0\x10\0") + chunk(b"sBIT", b"\1\1\1")
    assert np.array_equal(open_labels(start + odd + rest).read(), pixels[..., 0])


@pytest.mark.parametrize("colour", [0, 3])
def test_labels_of_one_channel_may_have_large_texts_and_profiles(colour):
    values = np.arange(30).reshape(5, 6)
    large = zlib.compress(bytes(2**21))
    odd = [(b"iCCP", b"x\0\0" + large), (b"zTXt", b"x\0\0" + large)]
    palette = [(b"PLTE", bytes(3 * 256))] if colour else []
    assert np.array_equal(open_labels(png(8, colour, values, *odd, *palette)).read(), values)


def encoded(form: str) -> bytes:
    memory = BytesIO()
    Image.new("L", (13, 11), 3).save(memory, form)
    return memory.getvalue()


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ("JPEG", "it is a JPEG, which is lossy: its numbers are not those that were drawn; expected a PNG"),
        ("TIFF", "it is a TIFF; expected a PNG"),
        ("BMP", "it is a BMP"),
        ("GIF", "it is a GIF"),
        ("WEBP", "it is a WebP"),
        ("PPM", "it is a PGM"),
        ("JPEG2000", "it is a JPEG 2000"),
    ],
)
def test_other_formats_are_refused_by_name(form, named):
    with pytest.raises(ValueError, match=named):
        open_labels(encoded(form)).read()


def test_arrays_are_refused_by_name():
    for save, named in ((np.save, "a NumPy array"), (np.savez, "a zip archive")):
        memory = BytesIO()
        save(memory, np.zeros((3, 4), np.uint8))
        with pytest.raises(ValueError, match=f"it is {named}"):
            open_labels(memory.getvalue()).read()


@pytest.mark.parametrize("colour", [0, 2, 3])
def test_labels_with_missing_rows_are_refused(colour):
    size, lines = (11, 13), rows(6, 13, 8, colour)
    palette = [(b"PLTE", bytes(768))] if colour == 3 else []
    with pytest.raises(ValueError, match="the PNG's pixels are truncated: "):
        open_labels(join(header(*size, 8, colour), *palette, (b"IDAT", zlib.compress(lines)))).read()
    with pytest.raises(ValueError, match="the PNG breaks off"):
        open_labels(join(header(*size, 8, colour))[:24]).read()


@pytest.mark.parametrize("kept", [0, 2, 60, -20])
def test_a_png_whose_pixels_break_off_is_refused(kept):
    values = np.random.default_rng(0).integers(0, 200, (11, 13))
    with pytest.raises(ValueError, match="the PNG's pixels are truncated: "):
        open_labels(png(8, 0, values, kept=kept)).read()


@pytest.mark.parametrize("name", SCIPY)
def test_matlab_files_that_scipy_wrote(name):
    found = open_labels(base64.b64decode(SCIPY[name])).read()
    assert found.dtype == np.uint16 and found.tolist() == [[0, 182, 32, 48], [64, 80, 96, 112], [128, 144, 160, 176]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f8"])
def test_matlab_files_of_either_order(dtype, compressed, order, tmp_path):
    labels = np.random.default_rng(0).integers(0, 200, (31, 17)).astype(dtype)
    found = open_labels(write_matlab(tmp_path / "a.mat", labels, compressed, order).read_bytes()).read()
    assert np.array_equal(found, labels) and found.flags.c_contiguous


def matlab(tmp_path, labels, compressed=False):
    return bytearray(write_matlab(tmp_path / "a.mat", labels, compressed).read_bytes())


def at(content, name=b"S\0"):
    """The position of the matrix S in an uncompressed file; its dimensions are 16 bytes before the tag of its name."""
    return content.index(struct.pack("<II", 1, 1) + name)


def huge(content):
    content[at(content) - 8 : at(content)] = struct.pack("<ii", 2**30, 2**30)


def negative(content):
    content[at(content) - 8 : at(content)] = struct.pack("<ii", -3, -4)


def wide(content):
    content[at(content) - 8 : at(content)] = struct.pack("<ii", 3, 5)


def far(content):
    content[at(content) - 36 : at(content) - 32] = struct.pack("<I", 2**31)


def a_cell(content):
    content[at(content) - 24] = 1


def renamed(content):
    content[at(content) + 8] = ord("T")


def version_7_3(content):
    content[124:126] = struct.pack("<H", 0x0200)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (huge, r"1073741824 x 1073741824 pixels are not in 1\.\."),
        (negative, "-3 x -4 pixels"),
        (wide, "stores 12 numbers for 3 x 5"),
        (far, "breaks off"),
        (a_cell, "has no matrix S"),
        (renamed, "has no matrix S"),
        (version_7_3, r"version 0x0200; expected version 5: save it with -v7"),
    ],
)
def test_hostile_matlab_files(spoil, told, tmp_path):
    content = matlab(tmp_path, np.arange(12, dtype="u2").reshape(3, 4))
    spoil(content)
    with pytest.raises(ValueError, match=told):
        open_labels(bytes(content)).read()


def test_the_checksum_of_a_compressed_matrix_is_checked(tmp_path):
    content = matlab(tmp_path, np.arange(1200, dtype="u2").reshape(30, 40), compressed=True)
    start = 136 + struct.unpack_from("<I", content, 132)[0]  # after the text
    end = start + 8 + struct.unpack_from("<I", content, start + 4)[0]
    content[end - 1] ^= 1
    with pytest.raises(ValueError, match="the MATLAB file is damaged"):
        open_labels(bytes(content)).read()


@pytest.mark.parametrize(
    ("values", "told"),
    [([0.5], "not integers"), ([-1.0], "labels are -1"), ([np.nan], "labels are nan"), ([65536.0], "65536")],
)
def test_numbers_that_are_not_labels_are_refused(values, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        open_labels(bytes(matlab(tmp_path, np.array([values])))).read()


def test_a_declared_size_is_not_allocated(tmp_path):
    """A compressed matrix of a gigabyte of zeros, and a picture of as many pixels, are refused without allocating them."""
    bomb = matlab(tmp_path, np.zeros((1, 1), "u2"))[:128]
    zeros = zlib.compressobj(9)
    start = struct.pack("<IIIIIIIIiiII", 14, 2**31, 6, 8, 11, 0, 5, 8, 2**15, 2**15, 1, 1) + b"S".ljust(8, b"\0")
    packed = zeros.compress(start) + zeros.compress(bytes(2**24)) + zeros.flush()
    bomb += struct.pack("<II", 15, len(packed)) + packed
    picture = bytearray(png(8, 0, np.zeros((2, 2), int)))
    picture[16:24] = struct.pack(">II", 2**15, 2**15)
    for content, told in ((bomb, "32768 x 32768 pixels are not in"), (picture, "pixels are not in")):
        tracemalloc.start()
        with pytest.raises(ValueError, match=told):
            open_labels(bytes(content)).read()
        assert tracemalloc.get_traced_memory()[1] < 10**6
        tracemalloc.stop()


def matlab_bomb(height, width, length=None, numbers=2**28):
    """A compressed matrix S of a few hundred KB that declares a size and a length in bytes, followed by ``numbers`` zeros."""
    length = 56 + 8 * height * width if length is None else length
    start = struct.pack("<IIIIIIIIiiII", 14, length, 6, 8, 11, 0, 5, 8, height, width, 1, 1) + b"S".ljust(8, b"\0")
    zeros = zlib.compressobj(9)
    packed = zeros.compress(start + struct.pack("<II", 9, 8 * height * width % 2**32)) + zeros.compress(bytes(numbers))
    packed += zeros.flush()
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + struct.pack("<II", 15, len(packed)) + packed


def test_a_matrix_of_another_size_than_its_picture_is_never_decompressed(tmp_path):
    """Its size is known beforehand; a length that exceeds what its numbers need is refused as well."""
    bomb = matlab_bomb(2**12, 2**12, numbers=2**27)
    tracemalloc.start()
    assert open_labels(bomb).size == (2**12, 2**12)
    with pytest.raises(ValueError, match="declares a matrix of 134217784 bytes for 30 x 40 numbers"):
        open_labels(matlab_bomb(30, 40, 2**27 + 56, 2**20))
    assert tracemalloc.get_traced_memory()[1] < 5 * 10**6  # including the files themselves
    tracemalloc.stop()
    faults = []
    made = LabelTask(name="a", split="val", images=[], options=LabelOptions(dataset="cocostuff10k"), vocabulary="", known={})
    (tmp_path / "a.mat").write_bytes(bomb)
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((30, 40, 3), np.uint8))
    tracemalloc.start()
    assert made.sample(LabelledImage(1, str(tmp_path), "a.jpg", "a.mat"), faults, Counter()) is None
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    assert [(f.kind, f.reason) for f in faults] == [("wrong image size", "a.jpg: is 30 x 40, its mask is 4096 x 4096")]


@pytest.mark.parametrize("kind", ["png", "palette", "matlab", "compressed"])
@pytest.mark.parametrize("rounds", [400, pytest.param(20_000, marks=pytest.mark.long)])
def test_damaged_files_are_refused_or_read_completely(kind, rounds, tmp_path):
    """Wrong bytes lead to a ValueError or to labels of some size; a truncated file is never read."""
    values = np.random.default_rng(0).integers(0, 200, (30, 40))
    if kind in ("png", "palette"):
        whole = png(8, 3 if kind == "palette" else 0, values, *([(b"PLTE", bytes(768))] if kind == "palette" else []))
    else:
        whole = bytes(matlab(tmp_path, values.astype("u2"), kind == "compressed"))
    rng = random.Random(0)
    end = len(whole) - 12 if kind in ("png", "palette") else len(whole) // 2  # everything that is read comes before it
    for _ in range(rounds):
        cut = whole[: rng.randrange(end)]
        with pytest.raises(ValueError):
            open_labels(cut).read()
        wrong = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            wrong[rng.randrange(len(wrong))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        try:
            assert open_labels(bytes(wrong)).read().ndim == 2
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"MATLAB 5.0".ljust(200)])
def test_files_that_are_not_label_files_are_refused(content):
    with pytest.raises(ValueError, match=r"empty|neither|breaks off|is a JPEG"):
        open_labels(content).read()


def test_unknown_labels_become_unlabelled_and_are_counted():
    labels = np.array([[0, 5, 9], [9, 255, 65535]], np.uint16)
    classes = to_classes(labels, {5: 2, 255: 0, 65535: 1})
    assert classes.tolist() == [[0, 2, 0], [0, 0, 1]] and classes.dtype == np.uint16
    assert label_pixels(labels) == {0: 1, 5: 1, 9: 2, 255: 1, 65535: 1}
