"""The check of PNGs: every decoder gives the same result for what it accepts, and it refuses what any decoder refuses."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from made_pngs import KINDS, chunk, header, join, made, rows
from PIL import Image

from cocolvis.pictures import png
from cocolvis.pictures.encoded import check

SIZES = [(1, 1), (1, 9), (9, 1), (3, 5), (8, 8), (13, 17)]


def accepted(content: bytes) -> bool:
    try:
        png.check(content)
    except ValueError as error:
        assert str(error).startswith("the PNG") and str(error).isprintable()
        return False
    return True


def by_pillow(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8, or None if Pillow refuses."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            if image.mode.startswith("I"):
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, zlib.error):
        return None


def by_opencv(content: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def decodes_alike(content: bytes) -> bool:
    one, other = by_pillow(content), by_opencv(content)
    assert one is not None and other is not None and one.shape == other.shape
    return np.abs(one.astype(int) - other).max() <= 1  # one drops the lower of 16 bits, the other rounds


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_is_accepted(kind, interlaced):
    colour, bits = kind
    for seed, size in enumerate(SIZES):
        content = join(*made(*size, bits, colour, interlaced, seed))
        assert png.read_header(content) == (*size, bits, colour, bool(interlaced))
        png.check(content)
        assert decodes_alike(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pngs_written_by_pillow_and_opencv_are_accepted(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 250) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    for options in ({}, {"optimize": True}, {"compress_level": 0}, {"dpi": (72, 72)}):
        memory = io.BytesIO()
        image.save(memory, "PNG", **options)
        check(memory.getvalue(), (37, 53))
    check(cv2.imencode(".png", pixels)[1].tobytes(), (37, 53))
    check(cv2.imencode(".png", pixels[..., 0].astype(np.uint16))[1].tobytes(), (37, 53))


def mutations(chunks: list[tuple[bytes, bytes]], rng: np.random.Generator):
    """Yield copies with one bit flipped in each byte of a PNG, and in each byte of its chunk bodies with a matching CRC."""
    whole = join(*chunks)
    for at in range(len(whole)):
        yield whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :]
    for number, (kind, body) in enumerate(chunks):
        for at in range(len(body)):
            wrong = body[:at] + bytes([body[at] ^ 1 << int(rng.integers(8))]) + body[at + 1 :]
            yield join(*chunks[:number], (kind, wrong), *chunks[number + 1 :])


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_pngs_that_are_accepted_decode_alike(kind, interlaced):
    colour, bits = kind
    rng, refused = np.random.default_rng(colour * 100 + bits), 0
    for content in mutations(made(9, 7, bits, colour, interlaced), rng):
        if accepted(content):
            assert decodes_alike(content)
        else:
            refused += 1
    assert refused > 100


def idat(packed: bytes) -> list[tuple[bytes, bytes]]:
    return [header(9, 7), (b"IDAT", packed)]


ROWS = rows(9, 7)
DAMAGED = {
    "a row is missing": (join(*idat(zlib.compress(ROWS[:-22]))), "truncated: 176 of 198"),
    "a row too many": (join(*idat(zlib.compress(ROWS + bytes(22)))), "more pixels than"),
    "a byte too many": (join(*idat(zlib.compress(ROWS + bytes(1)))), "more pixels than"),
    "endless zeros": (join(*idat(zlib.compress(bytes(10_000_000)))), "more pixels than"),
    "no checksum": (join(*idat(zlib.compress(ROWS)[:-4])), "truncated: 198 of 198"),
    "another checksum": (join(*idat(zlib.compress(ROWS)[:-1] + b"?")), "damaged: incorrect data check"),
    "a filter that does not exist": (join(*idat(zlib.compress(ROWS[:22] + b"\5" + ROWS[23:]))), "a row has a filter"),
    "no pixels": (join(header(9, 7)), "truncated: 0 of 198"),
    "pixels of no zlib stream": (join(*idat(b"not zlib")), "damaged: incorrect header check"),
    "interrupted pixels": (join(header(9, 7), *made(9, 7)[1:2], (b"tEXt", b"a\0b"), *made(9, 7)[2:]), "interrupted"),
    "a second header": (join(*made(9, 7), header(60_000, 60_000)), "run together"),
    "no header": (join(*made(9, 7)[1:]), "no header"),
    "a short header": (join((b"IHDR", header(9, 7)[1][:12]), *made(9, 7)[1:]), "has 12 bytes"),
    "no palette": (join(header(9, 7, colour=3), *made(9, 7, colour=3)[2:]), "no palette before"),
    "half a colour in its palette": (join(header(9, 7, colour=3), (b"PLTE", bytes(7)), *made(9, 7)[1:]), "no valid palette"),
    "an unknown chunk that matters": (join(header(9, 7), (b"CgBI", b"")), "chunk CgBI"),
    "no end": (join(*made(9, 7), end=False), "breaks off"),
    "no width": (join(header(9, 0)), "9 x 0 pixels"),
    "half a chunk": (join(*made(9, 7))[:70], "breaks off"),
    "its signature alone": (join(end=False), "breaks off"),
    "3 bits": (join(header(9, 7, bits=3, colour=0)), "not a valid combination"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_reported(name):
    content, told = DAMAGED[name]
    with pytest.raises(ValueError, match=told):
        png.check(content)


def test_bytes_after_the_end_and_optional_chunks_are_ignored():
    chunks = made(9, 7)
    for content in (
        join(*chunks) + b"garbage" * 1000,
        join(*chunks) + chunk(b"IDAT", b"garbage"),
        join(chunks[0], (b"tEXt", b"\0"), (b"vpAg", b"private"), *chunks[1:], (b"tIME", bytes(7))),
        join(chunks[0], (b"IDAT", b""), *chunks[1:], (b"IDAT", b"behind the stream")),
    ):
        png.check(content)
        assert decodes_alike(content)


@pytest.mark.parametrize("size", [(8, 9), (60_000, 60_000)])
def test_optional_chunks_that_make_opencv_give_up_are_found_by_decoding(size):
    chunks = made(8, 8)
    frame = struct.pack(">IIIIIHHBB", 0, *size, 0, 0, 1, 1, 0, 0)
    content = join(chunks[0], (b"acTL", struct.pack(">II", 1, 0)), (b"fcTL", frame), *chunks[1:])
    png.check(content)
    with pytest.raises(ValueError, match="its pixels cannot be decoded"):
        check(content, (8, 8), decode=False)
