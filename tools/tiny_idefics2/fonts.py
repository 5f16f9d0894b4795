"""The fonts of the generated pages: from font packages (the `train` extra) and from folders of the system.

Families of the system, named in `words/families.txt`, widen training where they are found: below /usr/share/fonts or in
the folder that TINY_IDEFICS2_FONTS names. Debian has them as fonts-: liberation, crosextra-carlito, open-sans,
freefont-ttf, inconsolata, ebgaramond, roboto-slab, roboto-unhinted, urw-base35, linuxlibertine, courier-prime,
cantarell, jetbrains-mono, inter, karla, cabin, go, anonymous-pro, vollkorn, sil-gentium-basic, clear-sans, dosis,
quicksand, play, cardo, junicode, adf-gillius, adf-universalis, adf-baskervald, adf-switzera, averia-sans-gwf,
sil-andika,
sil-charis, mononoki, league-mono, comfortaa.

Those of the packages are needed. No family of the second set stands here.
"""

from __future__ import annotations

import importlib.util
import os
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
_SYSTEM = Path(__file__).parent / "words" / "families.txt"  # name, regular face, bold face


def package_folder(package: str) -> Path:
    """Return the folder of an installed package.

    Raises:
        ModuleNotFoundError: it is missing; `pip install 'idefics-cli[train]'` brings them all.

    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no font package {package!r}: pip install 'idefics-cli[train]'", name=package)
    return Path(next(iter(spec.submodule_search_locations)))


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """Return the families of the font packages, then those that the system has."""
    found = []
    for name, (package, folder, regular, bold) in _PACKAGES.items():
        root = package_folder(package) / folder
        found.append(Family(name, root / regular, root / bold, embeds_in_pdf=regular.endswith(".ttf")))
    files: dict[str, Path] = {}
    for folder in ("/usr/share/fonts", os.environ.get("TINY_IDEFICS2_FONTS")):
        if folder:
            files |= {path.name: path for path in sorted(Path(folder).rglob("*.[ot]tf"))}
    for line in _SYSTEM.read_text(encoding="utf-8").splitlines():
        name, regular, bold = line.split("|")
        if regular in files and bold in files:
            found.append(Family(name, files[regular], files[bold], embeds_in_pdf=regular.endswith(".ttf")))
    return tuple(found)


@lru_cache(maxsize=4096)
def face(path: Path, size: float) -> ImageFont.FreeTypeFont:
    """Open one face at a size in pixels."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


class _Advances(dict[str, float]):
    """The advance widths of the characters of one face at one size, each measured when it is first asked for."""

    def __init__(self, path: Path, size: float) -> None:
        super().__init__()
        self.path, self.size = path, size

    def __missing__(self, character: str) -> float:
        self[character] = width = face(self.path, self.size).getlength(character)
        return width


_advances = lru_cache(maxsize=32_768)(_Advances)


def advances(path: Path, size: float, text: str) -> list[float]:
    """Return the advance width of each character of `text`, in pixels."""
    table = _advances(path, size)
    return [table[character] for character in text]
