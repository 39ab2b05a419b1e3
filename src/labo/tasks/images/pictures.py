"""One picture to bytes of red, green and blue, whatever it was saved as."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from labo.errors import UserError

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".tga"
)  # fmt: skip
# Files that are pictures by their names, or may be, and are not read.
UNREAD_ENDINGS = (".avif", ".heic", ".heif", ".jxl", ".svg", ".raw", ".dng", ".nef", ".cr2", ".psd", "")


class UnreadableError(UserError):
    """A picture that cannot be decoded; the message names it."""


def decode(content: Path | bytes, name: str, size: int, crop: float = 1.0) -> np.ndarray:
    """A picture as uint8 (size, size, 3).

    Its middle square is taken, or the share `crop` of that square's side, and scaled (bicubic) to `size` pixels; a
    picture of this size already stays as it is. ImageNet is tested so with crop = 224 / 256. Grey, palette, CMYK and
    16-bit pictures become RGB; what is transparent becomes white; a camera's rotation mark is obeyed.

    Raises:
        UnreadableError: damaged, truncated, no picture, or values of more than 16 bits.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at half, a quarter or an eighth
            turned = ImageOps.exif_transpose(image)
            colours = _rgb(turned, name)
    except UnreadableError:
        raise
    except Exception as error:  # what a damaged picture raises depends on where it is damaged
        raise UnreadableError(f"Cannot read the picture '{name}': {_reason(error)}.") from error
    if colours.size != (size, size) or crop < 1:
        colours = ImageOps.fit(colours, (size, size), Image.Resampling.BICUBIC, bleed=(1 - crop) / 2)
    return np.asarray(colours)


def resized(image: np.ndarray, size: int, crop: float = 1.0) -> np.ndarray:
    """A uint8 (H, W, 3) picture as (size, size, 3), as `decode` does it."""
    from PIL import Image, ImageOps

    if image.shape[:2] == (size, size) and crop == 1:
        return image
    return np.asarray(
        ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BICUBIC, bleed=(1 - crop) / 2)
    )


def extent(content: Path | bytes) -> tuple[int, int] | None:
    """(width, height) as a picture's header has them; None where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            return image.size
    except Exception:
        return None


def _rgb(image: Any, name: str) -> Any:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image), name))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """0 to 65535 as 0 to 255; Pillow's own conversion would cut everything above 255 to white."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UnreadableError(f"Cannot read the picture '{name}': its values are no 8 or 16 bits; save it anew.")
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is damaged or no picture"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
