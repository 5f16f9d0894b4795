from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idefics_cli.documents.images import frame_count, load_frame, to_rgb
from idefics_cli.errors import FailureKind, RowFailedError

BIG = 10**9


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 10, 20))  # a bar on the left
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    upright = load_frame(str(tmp_path / "x.png"), 1, BIG)
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2)) == (0, 0, 0)  # the bar is on top


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "x.png")
    rgb = load_frame(str(tmp_path / "x.png"), 1, BIG)
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
    assert load_frame(str(tmp_path / "x.jpg"), 1, BIG).getpixel((0, 0)) == (255, 255, 255)


def test_a_page_for_each_frame_of_a_tiff_and_one_for_a_gif(tmp_path: Path) -> None:
    frames = [Image.new("L", (9, 9), grey) for grey in (10, 20, 30)]
    frames[0].save(tmp_path / "x.tiff", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert frame_count(str(tmp_path / "x.tiff"), BIG) == 3
    assert load_frame(str(tmp_path / "x.tiff"), 3, BIG).getpixel((0, 0)) == (30, 30, 30)
    assert frame_count(str(tmp_path / "x.gif"), BIG) == 1


def failure(path: Path, page: int = 1, max_pixels: int = BIG) -> FailureKind:
    with pytest.raises(RowFailedError) as caught:
        load_frame(str(path), page, max_pixels)
    return caught.value.failure.kind


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
                frame_count(str(path), BIG)
                load_frame(str(path), 1, 10**7)
            except RowFailedError:
                pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("L", (4, 4)).save(path)
    path.chmod(0)
    assert failure(path) is FailureKind.UNREADABLE


LOAD_LARGE = """
import resource, sys
from idefics_cli.documents.images import load_frame
resource.setrlimit(resource.RLIMIT_DATA, (2_000_000_000, 2_000_000_000))
image = load_frame(sys.argv[1], 1, 250_000_000, 1960)
print(image.mode, *image.size, image.getpixel((0, 0)))
"""


@pytest.mark.parametrize(
    ("mode", "name", "size"), [("CMYK", "x.jpg", (15_000, 15_000)), ("RGBA", "x.png", (12_000, 12_000))]
)
def test_the_largest_images_are_read_within_the_memory_of_a_page_process(
    tmp_path: Path, mode: str, name: str, size: tuple[int, int]
) -> None:
    options = {"compress_level": 1} if name.endswith("png") else {}
    Image.new(mode, size).save(tmp_path / name, **options)  # type: ignore[arg-type]
    done = subprocess.run([sys.executable, "-c", LOAD_LARGE, str(tmp_path / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    factor = max(size) // 3920
    assert done.stdout.split()[:3] == ["RGB", *(str(-(-edge // factor)) for edge in size)]


@pytest.mark.parametrize("mode", ["L", "I;16", "F", "P", "CMYK"])
def test_a_large_image_scaled_down_in_bands_is_the_same_as_scaled_down_whole(tmp_path: Path, mode: str) -> None:
    ramp = np.linspace(0, 60_000, 7_200 * 7_000).reshape(7_200, 7_000)
    made = {"I;16": Image.fromarray(ramp.astype(np.uint16)), "F": Image.fromarray(ramp.astype(np.float32))}
    image = made.get(mode) or Image.fromarray((ramp / 256).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "x.tiff")
    small = load_frame(str(tmp_path / "x.tiff"), 1, BIG, 980)
    assert small.size == (2334, 2400)
    with Image.open(tmp_path / "x.tiff") as opened:
        whole = to_rgb(opened).reduce(3)
    assert np.abs(np.asarray(small, int) - np.asarray(whole, int)).max() <= 1


def test_a_turned_large_image_is_upright(tmp_path: Path) -> None:
    image = Image.new("1", (9_000, 6_000), 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    assert load_frame(str(tmp_path / "x.png"), 1, BIG, 980).size == (1500, 2250)
