"""Image files of all kinds: their pixels mean what the file says, or the file is refused."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.pictures import read_picture

GREYS = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
RGB = np.stack([GREYS, 255 - GREYS, GREYS // 2], axis=-1)


def test_grey_palette_and_two_levels_become_three_channels(tmp_path: Path) -> None:
    Image.fromarray(GREYS).save(tmp_path / "l.png")
    Image.fromarray(GREYS).convert("P").save(tmp_path / "p.png")
    Image.fromarray(GREYS > 100).save(tmp_path / "1.png")
    Image.fromarray(RGB).save(tmp_path / "rgb.bmp")
    for name, expected in (("l.png", GREYS), ("p.png", GREYS), ("1.png", 255 * (GREYS > 100))):
        assert np.array_equal(read_picture(tmp_path / name, None), np.repeat(expected[:, :, None], 3, axis=2)), name
    assert np.array_equal(read_picture(tmp_path / "rgb.bmp", None), RGB)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bit_greys_keep_their_levels(tmp_path: Path, ending: str) -> None:
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(wide).save(tmp_path / f"wide.{ending}")
    read = read_picture(tmp_path / f"wide.{ending}", None)
    assert np.array_equal(read[:, :, 0], np.round(wide / 257))
    assert len(np.unique(read)) == 64


def test_sixteen_bit_greys_that_eight_bits_cannot_keep_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "dark.png")
    with pytest.raises(ValueError, match="64 greys of 16 bits, 0 to 63 of 65535, of which 8 bits would keep 1"):
        read_picture(tmp_path / "dark.png", None)


def test_transparent_parts_are_laid_on_white(tmp_path: Path) -> None:
    alpha = np.full((8, 8, 1), 255, np.uint8)
    alpha[:4] = 0
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "rgba.png")
    Image.fromarray(np.concatenate([GREYS[:, :, None], alpha], axis=2)).save(tmp_path / "la.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).convert("P").save(tmp_path / "p.png", transparency=0)
    for name in ("rgba.png", "la.png"):
        assert (read_picture(tmp_path / name, None)[:4] == 255).all(), name
    assert np.array_equal(read_picture(tmp_path / "rgba.png", None)[4:], RGB[4:])
    assert (read_picture(tmp_path / "p.png", None) == 255).all()


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (2, lambda pixels: pixels[:, ::-1]),
        (3, lambda pixels: pixels[::-1, ::-1]),
        (4, lambda pixels: pixels[::-1]),
        (5, lambda pixels: pixels.transpose(1, 0, 2)),
        (6, lambda pixels: np.rot90(pixels, 3)),
        (7, lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_a_turned_photograph_is_upright(
    tmp_path: Path, orientation: int, upright: Callable[[np.ndarray], np.ndarray]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "x.png", None), upright(pixels))


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "x.tif")
    assert np.abs(read_picture(tmp_path / "x.tif", None).astype(int) - RGB).max() <= 1


def test_what_cannot_be_kept_is_refused_with_its_mode(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "f.tif")
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(tmp_path / "i.tif")
    frames = [Image.fromarray(GREYS), Image.fromarray(GREYS.T.copy()), Image.fromarray(255 - GREYS)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, message in [
        ("f.tif", "mode F"),
        ("i.tif", "have signs"),
        ("moving.gif", "3 frames"),
        ("pages.tif", "3 frames"),
        ("cut.png", "."),
        ("text.png", "cannot identify"),
        ("pipe.png", "not a regular file"),
        ("folder.png", "not a regular file"),
        ("none.png", "No such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_picture(tmp_path / name, None)


def test_an_image_too_large_to_unpack_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(GREYS).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="exceeds limit"):
        read_picture(tmp_path / "x.png", None)


@pytest.mark.parametrize("values", [[0, 1], [0, 1, 2, 3], [0, 255], [30000, 30100], list(range(300))])
def test_dark_greys_of_sixteen_bits_do_not_become_black_in_silence(tmp_path: Path, values: list[int]) -> None:
    greys = np.resize(np.array(values, np.uint16), (20, 20))
    Image.fromarray(greys).save(tmp_path / "dark.png")
    with pytest.raises(ValueError, match="greys of 16 bits"):
        read_picture(tmp_path / "dark.png", None)


def test_white_is_zero_is_turned_back_in_sixteen_bits_as_in_eight(tmp_path: Path) -> None:
    for bits, pixels in ((8, GREYS), (16, 65535 - GREYS.astype(np.uint16) * 257)):  # Pillow writes 8 bits inverted
        Image.fromarray(pixels).save(tmp_path / f"{bits}.tif", tiffinfo={262: 0})
    eight, sixteen = (read_picture(tmp_path / f"{bits}.tif", None) for bits in (8, 16))
    assert np.array_equal(eight, sixteen)


def test_colours_of_sixteen_bits_keep_their_high_byte_or_are_refused(tmp_path: Path) -> None:
    def ppm(values: np.ndarray) -> bytes:
        return b"P6 8 8 65535\n" + values.astype(">u2").tobytes()

    (tmp_path / "light.ppm").write_bytes(ppm(RGB.astype(np.uint16) * 257))
    (tmp_path / "dark.ppm").write_bytes(ppm(RGB.astype(np.uint16)))
    assert np.abs(read_picture(tmp_path / "light.ppm", None).astype(int) - RGB).max() <= 1
    with pytest.raises(ValueError, match="channels have 16 bits"):
        read_picture(tmp_path / "dark.ppm", None)


def test_a_broken_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=b"Exif\x00\x00garbage")
    assert np.array_equal(read_picture(tmp_path / "x.png", None), RGB)


def test_a_bomb_is_refused_before_its_pixels_are_read(tmp_path: Path) -> None:
    """A PNG of a few kilobytes whose pixels would be gigabytes, of several sizes about Pillow's own limits."""
    for width, height in ((8193, 8192), (9000, 9000), (15_000, 15_000), (2**31 - 1, 2**31 - 1), (1, 2**27)):
        head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
        body = b"\x00\x00\x00\x0d" + head + zlib.crc32(head).to_bytes(4, "big")
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body + b"\x00\x00\x00\x64IDAT" + bytes(100))
        with pytest.raises(ValueError, match="pixels"):
            read_picture(tmp_path / "bomb.png", 8)


def test_what_pillow_would_give_to_other_programs_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(ValueError, match="cannot identify"):
        read_picture(tmp_path / "x.png", None)
