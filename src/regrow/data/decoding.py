"""One image file, opened with care: what is called an image may be a pipe, a bomb, or a program for another program."""

from __future__ import annotations

import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from regrow.errors import RegrowValueError

FORMATS = ("PNG", "JPEG")
"""What is decoded, whatever a file is called: Pillow would start other programs for some formats (Ghostscript)."""
LARGEST = 89_478_485
"""Pixels that an image may have, from where on Pillow warns: a small file may fill the memory."""
_TOO_LARGE = (
    f"has too many pixels, allowed are at most {LARGEST:,}\nMove it out of the folder, or scale it down."
)
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def require_file(path: Path) -> None:
    """Refuse what is called like an image and is none: who opens a pipe waits for ever."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        what = "a link to nothing" if path.is_symlink() else f"not readable: {error.strerror}"
        raise RegrowValueError(f"{path} is {what}\nMend it, or move it out of the folder.") from error
    if kind != stat.S_IFREG:
        raise RegrowValueError(
            f"{path} is a {_KINDS.get(kind, 'device')}, allowed are files\nMove it out of the folder."
        )


def decode(path: Path, size: int | None, channels: int) -> NDArray[np.uint8]:
    """Decode one image, uint8 [C, H, W]."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            _require_pixels(path, *opened.size, size)
            if size is not None:
                opened.draft("RGB", (size, size))  # a JPEG is then decoded at the next larger size it offers
            image: Image.Image = opened.convert("RGB" if channels == 3 else "L")
    except RegrowValueError:
        raise
    except UnidentifiedImageError as error:
        raise RegrowValueError(
            f"{path} cannot be decoded: it is neither a PNG nor a JPEG, whatever it is called\n"
            "Fetch the file again, convert it, or move it out of the folder."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RegrowValueError(f"{path} {_TOO_LARGE}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise RegrowValueError(
            f"{path} cannot be decoded: {error}\nFetch the file again, or move it out of the folder."
        ) from error
    if size is not None:
        width, height = image.size
        scale = size / min(width, height)
        sides = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize(sides, Image.Resampling.BILINEAR)
        left, top = (sides[0] - size) // 2, (sides[1] - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _require_pixels(path: Path, width: int, height: int, size: int | None) -> None:
    """Refuse an image that would fill the memory, as it is or once its shorter side has `size` pixels."""
    scale = 1.0 if size is None else max(1.0, size / min(width, height))
    if width * height * scale**2 > LARGEST:
        raise RegrowValueError(f"{path} of {width}x{height} pixels {_TOO_LARGE}")
