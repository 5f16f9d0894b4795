"""Reads image files with Pillow, mending what Pillow leaves: orientation, transparency, deep grey, CMYK."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from idefics_cli.errors import FailureKind, RowFailedError

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
_LARGE = 50_000_000  # pixels from which an image is scaled down piece by piece: four copies of it in RGB are 800 MB
_BAND = 4_000_000  # pixels of such a piece


def frame_count(path: str, max_pixels: int) -> int:
    """Return the number of pages of an image: the frames of a TIFF, otherwise 1.

    Raises:
        RowFailedError: not an image, or one with too many pixels.

    """
    with _open(path, max_pixels) as image:
        try:
            return int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
        except _DAMAGE as error:
            raise RowFailedError(FailureKind.UNREADABLE, f"damaged image: {error}") from error


def load_frame(path: str, page: int, max_pixels: int, useful_edge: int | None = None) -> Image.Image:
    """Return a page (from 1) as an upright RGB image.

    Args:
        path: the file.
        page: its frame, from 1.
        max_pixels: more are refused.
        useful_edge: an image of more than 50 megapixels may come scaled down by a whole number, its longest edge not
            below twice this.

    Raises:
        RowFailedError: a page that can't be decoded, or has too many pixels.
        MemoryError: there is not enough for it.

    """
    with _open(path, max_pixels) as image:
        try:
            if page > 1:
                image.seek(page - 1)
                _check_size(image, max_pixels)
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            factor = 1
            if useful_edge and image.width * image.height > _LARGE:
                factor = max(1, max(image.size) // (2 * useful_edge))
            return _upright(to_rgb(image) if factor == 1 else _scaled_down(image, factor), orientation)
        except _DAMAGE as error:
            raise RowFailedError(FailureKind.UNREADABLE, f"damaged image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as a person would see it on white paper."""
    return _to_rgb(image, _grey_range(image) if image.mode.startswith(_DEEP_GREY) else None)


def _to_rgb(image: Image.Image, grey_range: tuple[float, float] | None) -> Image.Image:
    if grey_range is not None:
        image = _rescale_grey(image, *grey_range)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled_down(image: Image.Image, factor: int) -> Image.Image:
    """Convert a large image to RGB and scale it down in bands, so that it is never held in RGB as a whole."""
    grey_range = _grey_range(image) if image.mode.startswith(_DEEP_GREY) else None
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top, band in _bands(image, factor):
        small.paste(_to_rgb(band, grey_range).reduce(factor), (0, top // factor))
    return small


def _bands(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield bands of an image from top to bottom with the rows they start at, which are multiples of `multiple`."""
    rows = max(1, _BAND // image.width // multiple) * multiple
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _grey_range(image: Image.Image) -> tuple[float, float]:
    """Return which values of 16-bit, 32-bit or float grey are black and white."""
    low = high = 0.0
    for number, (_, band) in enumerate(_bands(image)):
        pixels = _grey_pixels(band)
        low, band_high = min(low, float(pixels.min())), float(pixels.max())
        high = band_high if number == 0 else max(high, band_high)
    if image.mode == "F" and low >= 0 and high <= 1:
        high = 1.0
    elif low >= 0:  # whole steps of bit depth, so that a dark scan of 12 bits stays a dark scan
        high = float(next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits), high))
    return low, high


def _rescale_grey(image: Image.Image, low: float, high: float) -> Image.Image:
    """Bring deep grey to 8 bits; Pillow's own conversion clips it to white."""
    pixels = (_grey_pixels(image) - low) * (255 / max(high - low, 1e-9))
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _grey_pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info = {"exif": exif.tobytes()}
    return ImageOps.exif_transpose(image)


def _open(path: str, max_pixels: int) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked below, before anything is decoded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path)
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
