"""Reads image files with Pillow, mending what Pillow leaves: orientation, transparency, deep grey, CMYK."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document

# What Pillow raises on damaged files, seen over its format plugins.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
    EOFError,
    OverflowError,
)
_DEEP_GREY = ("I", "F")


def frame_count(document: Document, max_pixels: int) -> int:
    """Return the number of pages of an image: the frames of a TIFF, otherwise 1.

    Raises:
        RowFailedError: not an image, or one with too many pixels.

    """
    with _open(document, max_pixels) as image:
        try:
            return int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
        except _DAMAGE as error:
            raise RowFailedError(FailureKind.UNREADABLE, f"damaged image: {error}") from error


def load_frame(document: Document, page: int, max_pixels: int) -> Image.Image:
    """Return a page (from 1) as an upright RGB image.

    Raises:
        RowFailedError: a page that can't be decoded, or has too many pixels.

    """
    with _open(document, max_pixels) as image:
        try:
            if page > 1:
                image.seek(page - 1)
                _check_size(image, max_pixels)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
        except _DAMAGE as error:
            raise RowFailedError(FailureKind.UNREADABLE, f"damaged image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as a person would see it on white paper."""
    if image.mode.startswith(_DEEP_GREY):
        image = _rescale_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _rescale_grey(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and float grey to 8 bits; Pillow's own conversion clips them to white."""
    pixels = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
    low, high = min(0.0, float(pixels.min())), float(pixels.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        high = 1.0
    elif low >= 0:  # whole steps of bit depth, so that a dark scan of 12 bits stays a dark scan
        high = float(next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits), high))
    return Image.fromarray(np.round((pixels - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))


def _open(document: Document, max_pixels: int) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked below, before anything is decoded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(document.data) if document.data is not None else document.path or "")
    except UnidentifiedImageError as error:
        raise RowFailedError(
            FailureKind.UNSUPPORTED, "not a PDF, PNG, JPEG, TIFF, WebP, BMP or GIF that can be read"
        ) from error
    except _DAMAGE as error:
        raise RowFailedError(FailureKind.UNREADABLE, _words(error)) from error
    _check_size(image, max_pixels)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise RowFailedError(
            FailureKind.TOO_LARGE,
            f"{image.width} x {image.height} pixels are more than --max-pixels {max_pixels}",
        )


def _words(error: BaseException) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error) or type(error).__name__
