"""The check of JPEGs: it accepts all kinds, refuses what libjpeg warns about, and cannot be misled by headers."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from cocolvis.pictures import jpeg
from cocolvis.pictures.encoded import check, decode_rgb, image_size

PIXELS = cv2.resize(
    np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8), (67, 45), interpolation=cv2.INTER_CUBIC
)
KINDS = {
    "baseline": {},
    "restarts": {"restart_marker_blocks": 5},
    "progressive": {"progressive": True},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 5},
}
BENIGN = ("unknown JFIF revision", "Invalid SOS parameters for sequential", "before marker 0xdb")
"""Warnings of libjpeg that cost no pixel; the last one is about bytes before the tables of the pixels."""


def encoded(pixels: np.ndarray = PIXELS, mode: str = "RGB", **options) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(memory, "JPEG", **{"quality": 85} | options)
    return memory.getvalue()


def accepted(content: bytes) -> bool:
    try:
        check(content, (45, 67))
    except ValueError as error:
        assert str(error).isprintable()
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_is_accepted(kind, mode):
    for quality in (5, 75, 100):
        for subsampling in (0, 1, 2):
            for optimize in (False, True):
                content = encoded(mode=mode, quality=quality, subsampling=subsampling, optimize=optimize, **KINDS[kind])
                check(content, (45, 67))
                check(content + b"behind it", (45, 67))
    for height, width in ((1, 1), (7, 9), (16, 16), (17, 33)):
        check(encoded(PIXELS[:height, :width], mode, **KINDS[kind]), (height, width))


def test_jpegs_written_by_opencv_are_accepted():
    for sampling in (0x411111, 0x420000 | 0x1111, 0x221111, 0x211111, 0x111111):
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_RST_INTERVAL, 3]
        check(cv2.imencode(".jpg", PIXELS, options)[1].tobytes(), (45, 67))


def test_all_real_pictures_are_accepted(real):
    files = sorted(real.coco.rglob("*.jpg"))
    assert len(files) == 200
    for file in files:
        content = file.read_bytes()
        check(content, image_size(content))


def damaged(content: bytes, rng: np.random.Generator, count: int):
    """Yield copies with a bit, a byte or eight bytes changed, or some removed; mostly in the pixels, sometimes before."""
    start = content.index(b"\xff\xda")
    for number in range(count):
        changed, at = bytearray(content), int(rng.integers(start if number % 3 else 2, len(content)))
        if number % 4 == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif number % 4 == 1:
            changed[at] = int(rng.integers(256))
        elif number % 4 == 2:
            del changed[at : at + int(rng.integers(1, 30))]
        else:
            changed[at : at + 8] = rng.bytes(8)
        yield bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_libjpeg_warns_about_is_refused(kind, capfd):
    rng, warned = np.random.default_rng(2), 0
    for content in damaged(encoded(**KINDS[kind]), rng, 250):
        capfd.readouterr()
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        told = capfd.readouterr().err
        if pixels is None or (told and not any(text in told for text in BENIGN)):
            warned += 1
            assert not accepted(content), told
    assert warned > 60


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_and_lost_or_overwritten_ranges_are_found(kind):
    """Most of them: two loose ends may fit together by chance, and a progressive file may end after any scan."""
    content, rng = encoded(cv2.resize(PIXELS, (400, 300)), quality=95, **KINDS[kind]), np.random.default_rng(4)
    for change, least in ((b"\xff\xd9", 29), (b"", 27), (bytes(512), 21), (rng.bytes(512).replace(b"\xff", b"0"), 27)):
        found = 0
        for at in np.linspace(content.index(b"\xff\xda") + 14, len(content) - 600, 30).astype(int).tolist():
            rest = b"" if change == b"\xff\xd9" else content[at + 512 :]
            try:
                jpeg.check(content[:at] + change + rest)
            except ValueError:
                found += 1
        assert found >= least


DECOY = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 45, 67, 1) + b"\1\x11\0"


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd0", b"\xff\xd7", b"\xff\xff\xff\xd3", b"garbage\xff\0\xff\x01"])
def test_the_size_is_taken_from_the_header_that_libjpeg_reads(marker):
    """Markers without a length precede a large header; a reader that takes its first bytes for a length finds the decoy."""
    huge = bytearray(encoded())
    at = huge.index(b"\xff\xc0")
    huge[at + 5 : at + 9] = struct.pack(">HH", 5000, 6000)
    jump = 0xFFC0 if marker[-1:] != b"\0" else 0
    content = bytes(huge[:at]) + marker + bytes(huge[at : at + 19]) + b"\xff\xfe" + struct.pack(">H", jump) + bytes(jump - 2)
    content += DECOY + bytes(huge[at + 19 :])
    with pytest.raises(ValueError):
        decode_rgb(content, (45, 67))
    try:
        assert jpeg.read_size(content) == (5000, 6000)
    except ValueError as error:
        assert "two frame headers" in str(error)


HOSTILE = {
    "two frame headers": (encoded().replace(b"\xff\xc4", DECOY + b"\xff\xc4", 1), "two frame headers"),
    "no scan": (encoded()[: encoded().index(b"\xff\xda")] + b"\xff\xd9", "breaks off"),
    "no frame": (b"\xff\xd8\xff\xda\0\2\xff\xd9", "no frame header"),
    "segments without end": (b"\xff\xd8" + b"\xff\xe0\0\2" * 2**17, "no frame header"),
    "a segment without a length": (b"\xff\xd8\xff\xe0\0\0\xff\xd9", "without a length"),
    "a short frame header": (b"\xff\xd8\xff\xc0\0\4\0\0\xff\xd9", "too short"),
    "megabytes of FF": (b"\xff\xd8" + b"\xff" * 2**22, "breaks off"),
    "nothing behind its start": (b"\xff\xd8", "breaks off"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_invalid_headers_are_refused(name):
    content, told = HOSTILE[name]
    with pytest.raises(ValueError, match=told):
        image_size(content)


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_are_refused_with_a_reason(kind):
    content, rng = encoded(**KINDS[kind]), np.random.default_rng(3)
    for _ in range(100):
        at = int(rng.integers(2, len(content)))
        try:
            jpeg.check(content[:at] + rng.bytes(int(rng.integers(0, 300))) + content[at:])
        except ValueError as error:
            assert str(error).startswith("the JPEG")
