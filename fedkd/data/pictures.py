"""One reader for all image files: pixels mean what the file says, in 8 bits and three channels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import reason_of
from ..files import refuse_odd

_NAMES = "png apng jpg jpeg jpe jfif bmp dib gif tif tiff webp ppm pgm pbm pnm jp2 j2k tga avif"
ENDINGS = frozenset(f".{name}" for name in _NAMES.split(" "))
# the formats of these names; Pillow has others, one of which starts Ghostscript
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "AVIF")
_MOST_PIXELS = 2**26  # of an image: 8192 x 8192
_PHOTOMETRIC, _SAMPLE_FORMAT, _WHITE_IS_ZERO = 262, 339, 0  # tags of TIFF, and a value
_WIDE = 257  # 65535 / 255: from 16 to 8 bits
_LEFT = 4  # of many greys of a 16-bit image, at least one in this number must be left in 8 bits
_FEW = 16  # of up to so many greys, all must be left; and the lightest must be so many 8-bit greys above the darkest


def open_picture(file: Path | io.BytesIO, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """Open an image without reading its pixels. Raises ValueError for more pixels than any memory should take.

    Pillow's own errors, for what is no image of these formats, come out too.
    """
    with warnings.catch_warnings(action="ignore"):
        picture = Image.open(file, formats=formats)
    width, height = picture.size
    if width * height > _MOST_PIXELS:
        picture.close()
        raise ValueError(f"it is {width} x {height} pixels; the most are {_MOST_PIXELS}, such as 8192 x 8192")
    return picture


def read_picture(path: Path, size: int | None) -> np.ndarray:
    """Return an image file as uint8, H x W x 3, upright as its EXIF tag says; `size`: resized to size x size.

    Grey becomes three equal channels, 16 bits become 8 by the factor 1/257, transparent parts are laid on white.
    Raises ValueError with the reason for a file that cannot be read, or whose pixels this form cannot keep: several
    frames, float or 32-bit pixels, other colour spaces, 16-bit greys of which almost none would be left.
    """
    try:
        refuse_odd(path)
        # a damaged file is an error or none; Pillow's warnings on its parts help nobody
        with warnings.catch_warnings(action="ignore"), open_picture(path) as picture:
            # an MPO file of a phone is a JPEG with previews after its picture
            frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            if frames != 1:
                raise ValueError(f"it has {frames} frames; write each frame that you need to a file of its own")
            image = _eight_bits(picture)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise many types for damaged files
        raise ValueError(reason_of(error) or type(error).__name__) from error
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR) if size else image)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return an opened image as RGB, upright. Raises ValueError for pixels that 8 bits cannot keep."""
    tags = getattr(picture, "tag_v2", {})  # of TIFF
    if 2 in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)):
        raise ValueError("its pixels have signs, which 8 bits per channel cannot keep; convert it to 8-bit grey or RGB")
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    sixteen_in_colour = any(";16" in str(tile) or "65535" in str(tile) for tile in getattr(picture, "tile", []))
    image = _upright(picture)
    if sixteen:
        greys = np.asarray(image).astype(np.int64)
        return _from_sixteen(_WIDE * 255 - greys if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else greys)
    if sixteen_in_colour and image.mode in ("RGB", "RGBA", "LA"):
        _refuse_dark(np.asarray(image.convert("L")))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise ValueError(
            f"its pixels are of mode {image.mode}, which 8 bits per channel cannot keep; convert it to 8-bit grey or "
            "RGB with the scale that your images need"
        )
    return image.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF tag says; as it is where this part of the file is broken."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow's reader of tags raises many types
        return picture


def _refuse_dark(greys: np.ndarray) -> None:
    low, high = int(greys.min()), int(greys.max())
    if 0 < high < _FEW or (low == high == 0 and greys.size):
        raise ValueError(
            f"its channels have 16 bits, of which 8 bits would keep {low} to {high} of 255; convert it to 8 bits with "
            "the scale that your images need"
        )


def _from_sixteen(greys: np.ndarray) -> Image.Image:
    narrow = np.round(greys / _WIDE).astype(np.uint8)
    before, after = len(np.unique(greys)), len(np.unique(narrow))
    flat = before > 1 and int(narrow.max()) - int(narrow.min()) < _FEW
    if flat or after < (before if before <= _FEW else min(before, 256) / _LEFT):
        raise ValueError(
            f"it has {before} greys of 16 bits, {greys.min()} to {greys.max()} of 65535, of which 8 bits would keep "
            f"{after}; convert it to 8 bits with the scale that your images need"
        )
    return Image.fromarray(narrow).convert("RGB")


def pixels_of(image: Image.Image, size: int | None) -> np.ndarray:
    """Return an opened image as it is: grey, H x W, uint8 or uint16; other modes as colours, H x W x 3, uint8.

    `size`: resized to size x size. Raises ValueError for pixels that this form cannot keep.
    """
    image.load()
    if image.mode == "I;16":
        if size:
            raise ValueError("images of 16 bits cannot be resized here; write them in the size that you need")
        return np.asarray(image).astype(np.uint16)
    grey = image.mode in ("1", "L") and "transparency" not in image.info
    plain = _upright(image).convert("L") if grey else _eight_bits(image)
    return np.asarray(plain.resize((size, size), Image.Resampling.BILINEAR) if size else plain)


def alike(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return images as one array, N x H x W [x 3]; grey ones beside colours get three equal channels.

    Raises ValueError for images of unlike sizes or types.
    """
    sizes = sorted({one.shape[:2] for one in images})
    if len(sizes) > 1 or len({one.dtype for one in images}) > 1:
        shown = " and ".join(f"{width} x {height}" for height, width in sizes[:2])
        raise ValueError(f"its images are of {len(sizes)} sizes, such as {shown} pixels" if len(sizes) > 1 else
                         "some of its images have 8 bits, others 16")  # fmt: skip
    if len({one.ndim for one in images}) > 1:
        images = [one if one.ndim == 3 else np.repeat(one[:, :, None], 3, axis=2) for one in images]
    return np.stack(images)
