"""One reader for all image files: pixels mean what the file says, in 8 bits and three channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

_NAMES = "png apng jpg jpeg jpe jfif bmp dib gif tif tiff webp ppm pgm pbm pnm jp2 j2k tga avif"
ENDINGS = frozenset(f".{name}" for name in _NAMES.split(" "))
_WIDE = 257  # 65535 / 255: from 16 to 8 bits
_LEFT = 4  # of the greys of a 16-bit image, at least one in this number must be left in 8 bits


def read_picture(path: Path, size: int | None) -> np.ndarray:
    """Return an image file as uint8, H x W x 3, upright as its EXIF tag says; `size`: resized to size x size.

    Grey becomes three equal channels, 16 bits become 8 by the factor 1/257, transparent parts are laid on white.
    Raises ValueError with the reason for a file that cannot be read, or whose pixels this form cannot keep: several
    frames, float or 32-bit pixels, other colour spaces, 16-bit greys of which almost none would be left.
    """
    if not path.is_file():
        raise ValueError("it is not a regular file")
    try:
        with Image.open(path) as picture:
            # an MPO file of a phone is a JPEG with previews after its picture
            frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            if frames != 1:
                raise ValueError(f"it has {frames} frames; write each frame that you need to a file of its own")
            image = _eight_bits(ImageOps.exif_transpose(picture), sixteen_as_i=picture.format in ("PNG", "PPM"))
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise many types for damaged files
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR) if size else image)


def _eight_bits(image: Image.Image, sixteen_as_i: bool) -> Image.Image:
    """Return an image as RGB. Raises ValueError for pixels that 8 bits cannot keep.

    `sixteen_as_i`: Pillow gives the 16-bit greys of this format as mode I.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and sixteen_as_i):
        return _from_sixteen(np.asarray(image).astype(np.int64))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise ValueError(
            f"its pixels are of mode {image.mode}, which 8 bits per channel cannot keep; convert it to 8-bit grey or "
            "RGB with the scale that your images need"
        )
    return image.convert("RGB")


def _from_sixteen(greys: np.ndarray) -> Image.Image:
    narrow = np.round(greys / _WIDE).astype(np.uint8)
    before, after = len(np.unique(greys)), len(np.unique(narrow))
    if after * _LEFT < min(before, 256):
        raise ValueError(
            f"it has {before} greys of 16 bits, {greys.min()} to {greys.max()} of 65535, of which 8 bits would keep "
            f"{after}; convert it to 8 bits with the scale that your images need"
        )
    return Image.fromarray(narrow).convert("RGB")
