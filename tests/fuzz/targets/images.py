"""Folders of images: damaged files of several formats, under any of their names."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from fedkd.data.folders import from_folders
from fuzz.frame import new_folder, only_refusals
from fuzz.mutations import damaged

PIXELS = Image.fromarray((np.arange(8 * 8 * 3) % 251).astype(np.uint8).reshape(8, 8, 3))
ENDINGS = ("png", "jpg", "bmp", "gif", "tif", "webp", "ppm", "tga", "jp2", "avif")


def _file(ending: str) -> bytes:
    made = io.BytesIO()
    PIXELS.save(made, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(ending, ending))
    return made.getvalue()


FILES = {ending: _file(ending) for ending in ENDINGS}


@st.composite
def _files(draw: st.DrawFn) -> tuple[str, bytes]:
    content = draw(damaged(FILES[draw(st.sampled_from(ENDINGS))]))
    return draw(st.sampled_from(ENDINGS)), content


INPUTS = _files()


def target(drawn: tuple[str, bytes]) -> None:
    ending, content = drawn
    with new_folder() as folder, only_refusals():
        for label in "ab":
            (folder / label).mkdir()
            for number in range(5):
                (folder / label / f"{number}.png").write_bytes(FILES["png"])
        (folder / "a" / f"x.{ending}").write_bytes(content)
        from_folders(folder, 8)
