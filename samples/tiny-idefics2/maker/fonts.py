"""The fonts of the generated pages, taken from font packages (see the `train` extra in pyproject.toml)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont


@dataclass(frozen=True, slots=True)
class Family:
    """One type family: its name and the files of its faces, by weight."""

    name: str
    regular: Path
    bold: Path
    embeds_in_pdf: bool  # TrueType outlines, which reportlab can embed


_PACKAGES = {
    "Roboto": ("font_roboto", "files", "Roboto-Regular.ttf", "Roboto-Bold.ttf"),
    "Roboto Light": ("font_roboto", "files", "Roboto-Light.ttf", "Roboto-Medium.ttf"),
    "Source Sans": ("font_source_sans_pro", "files", "SourceSansPro-Regular.ttf", "SourceSansPro-Bold.ttf"),
    "Source Serif": ("font_source_serif_pro", "files", "SourceSerifPro-Regular.ttf", "SourceSerifPro-Bold.ttf"),
    "Hanken Grotesk": ("font_hanken_grotesk", "files", "HankenGrotesk-Regular.otf", "HankenGrotesk-Bold.otf"),
    "Caladea": ("font_caladea", "files", "Caladea-Regular.ttf", "Caladea-Bold.ttf"),
    "Caladea Italic": ("font_caladea", "files", "Caladea-Italic.ttf", "Caladea-BoldItalic.ttf"),
    "Manrope": ("font_manrope", "files", "Manrope-Regular.ttf", "Manrope-Bold.ttf"),
    "DejaVu Sans": ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "DejaVu Serif": ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "DejaVu Sans Mono": ("matplotlib", "mpl-data/fonts/ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "STIX": ("matplotlib", "mpl-data/fonts/ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf"),
}


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """Return the installed families.

    Raises:
        ModuleNotFoundError: a font package is missing; `pip install 'idefics-cli[train]'` brings them all.

    """
    found = []
    for name, (package, folder, regular, bold) in _PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no font package {package!r}: pip install 'idefics-cli[train]'", name=package)
        root = Path(next(iter(spec.submodule_search_locations))) / folder
        found.append(Family(name, root / regular, root / bold, embeds_in_pdf=regular.endswith(".ttf")))
    return tuple(found)


@lru_cache(maxsize=4096)
def face(path: Path, size: float) -> ImageFont.FreeTypeFont:
    """Open one face at a size in pixels."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=262_144)
def _advance(path: Path, size: float, character: str) -> float:
    return face(path, size).getlength(character)


def advances(path: Path, size: float, text: str) -> list[float]:
    """Return the advance width of each character of `text`, in pixels."""
    return [_advance(path, size, character) for character in text]
