from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idefics_cli.documents.images import frame_count, load_frame, to_rgb
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document

BIG = 10**9


def document(path: Path) -> Document:
    return Document(path.name, str(path))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 10, 20))  # a bar on the left
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    upright = load_frame(document(tmp_path / "x.png"), 1, BIG)
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2)) == (0, 0, 0)  # the bar is on top


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "x.png")
    rgb = load_frame(document(tmp_path / "x.png"), 1, BIG)
    assert rgb.getpixel((4, 4)) == (255, 255, 255)
    assert rgb.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("pixels", "middle"),
    [
        (np.array([[0, 32768, 65535]], np.uint16), 128),
        (np.array([[0, 2048, 4095]], np.uint16), 128),  # 12 bits in 16
        (np.array([[0, 128, 255]], np.int32), 128),
        (np.array([[0.0, 0.5, 1.0]], np.float32), 128),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), 128),
        (np.array([[0.0, np.nan, 1.0]], np.float32), 0),
    ],
)
def test_deep_grey_is_rescaled_not_clipped(pixels: np.ndarray, middle: int) -> None:
    rgb = to_rgb(Image.fromarray(pixels))
    assert [rgb.getpixel((x, 0))[0] for x in range(3)] == [0, middle, 255]  # type: ignore[index]


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "x.jpg")
    assert load_frame(document(tmp_path / "x.jpg"), 1, BIG).getpixel((0, 0)) == (255, 255, 255)


def test_a_page_for_each_frame_of_a_tiff_and_one_for_a_gif(tmp_path: Path) -> None:
    frames = [Image.new("L", (9, 9), grey) for grey in (10, 20, 30)]
    frames[0].save(tmp_path / "x.tiff", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert frame_count(document(tmp_path / "x.tiff"), BIG) == 3
    assert load_frame(document(tmp_path / "x.tiff"), 3, BIG).getpixel((0, 0)) == (30, 30, 30)
    assert frame_count(document(tmp_path / "x.gif"), BIG) == 1


def failure(path: Path, page: int = 1, max_pixels: int = BIG) -> FailureKind:
    with pytest.raises(RowFailedError) as caught:
        load_frame(document(path), page, max_pixels)
    return caught.value.kind


def test_bad_images_say_what_is_wrong(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_bytes(b"not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert failure(tmp_path / "cut.jpg") is FailureKind.UNREADABLE
    assert failure(tmp_path / "text.png") is FailureKind.UNSUPPORTED
    assert failure(tmp_path / "empty.png") is FailureKind.UNSUPPORTED
    assert failure(tmp_path / "folder.png") is FailureKind.UNREADABLE
    assert failure(tmp_path / "missing.png") is FailureKind.UNREADABLE
    assert failure(tmp_path / "x.jpg", max_pixels=9999) is FailureKind.TOO_LARGE


def test_bytes_changed_at_random_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("x.png", "x.jpg", "x.tiff", "x.webp", "x.bmp", "x.gif"):
        path = tmp_path / name
        Image.fromarray(rng.integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(path)
        good = path.read_bytes()
        for _ in range(40):
            bad = bytearray(good)
            for position in rng.integers(0, len(bad), 4):
                bad[position] = rng.integers(0, 256)
            path.write_bytes(bytes(bad[: rng.integers(1, len(bad) + 1)]))
            try:
                frame_count(document(path), BIG)
                load_frame(document(path), 1, 10**7)
            except RowFailedError:
                pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("L", (4, 4)).save(path)
    path.chmod(0)
    assert failure(path) is FailureKind.UNREADABLE
