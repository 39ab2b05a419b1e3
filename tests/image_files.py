"""What the tests of the image tasks share: small data sets in common file formats."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labo.tasks.images.cifar import Edition
from labo.tasks.images.decoding import EncodedImages, NumberedNames


def noise(seed: int, *shape: int) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(image: np.ndarray | Image.Image, path: Path) -> np.ndarray:
    """Save an image, with its folder; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path)
    return np.asarray(picture)


def contents(features: Any) -> set[bytes]:
    """The images of examples as bytes, to compare sets of them."""
    return {image.numpy().tobytes() for image in features[:]}


def class_folders(root: Path, counts: Mapping[str, int], size: tuple[int, int] = (8, 8), ending: str = "png") -> Path:
    """root/CLASS/0.png, …: `counts` images in each class, of (height, width) `size`."""
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            save(noise(1000 * place + number, *size, 3), root / name / f"{number}.{ending}")
    return root


def jpeg(image: np.ndarray) -> bytes:
    """An image as the bytes of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def differences(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3) as the shared archive keeps them: colours less green, differenced along columns and rows."""
    red, green, blue = images.transpose(3, 0, 1, 2)
    planes = np.stack([red - green, green, blue - green])
    down = np.diff(planes, axis=2, prepend=np.zeros_like(planes[:, :, :1]))
    return np.diff(down, axis=3, prepend=np.zeros_like(down[..., :1]))


def archived_cifar(root: Path, name: str, parts: str, images: int, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """NAME-train-PART.npz and NAME-test.npz of the shared archive, `images` in each; returns the images by file."""
    found = {}
    for seed, part in enumerate([*(f"train-{letter}" for letter in parts), "test"]):
        found[part] = noise(seed, images, 32, 32, 3)
        arrays = {"d": differences(found[part]), "y": (np.arange(images) % len(classes)).astype(np.uint8)}
        arrays |= {"classes": np.array(classes)} if part == "test" else {}
        np.savez(root / f"{name}-{part}.npz", **arrays)
    return found


class EncodedBytes(EncodedImages):
    """Images that are encoded in memory."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files, self.name = files, NumberedNames("bytes")

    def __len__(self) -> int:
        return len(self.files)

    def entry(self, index: int) -> tuple[str, bytes]:
        return self.name(index), self.files[index]


def blobs(files: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Files end to end, and their offsets."""
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def python_2_batch(images: np.ndarray, labels: Sequence[int], key: bytes = b"fine_labels") -> bytes:
    """The pickle, protocol 2, that Python 2 and the NumPy of its day wrote for {"data": …, KEY: …}."""
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    content = pixels.tobytes()
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01" + _int(pixels.shape[0]) + _int(pixels.shape[1]) + b"\x86" + kind + b"\x89"
    state += b"T" + len(content).to_bytes(4, "little") + content + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U" + bytes([len(key)]) + key + listed + b"u."


def python_2_names(key: bytes, names: Sequence[str]) -> bytes:
    """The pickle of {KEY: [names]}, as Python 2 wrote it."""
    listed = b"](" + b"".join(b"U" + bytes([len(name)]) + name.encode() for name in names) + b"e"
    return b"\x80\x02}U" + bytes([len(key)]) + key + listed + b"s."


def cifar_files(
    edition: Edition, images: int, classes: Sequence[str]
) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """The files of the python archive, and the images in them."""
    parts = {name: noise(seed, images, 32, 32, 3) for seed, name in enumerate((*edition.train, edition.test))}
    labels = [index % len(classes) for index in range(images)]
    files = {name: python_2_batch(image, labels, edition.labels) for name, image in parts.items()}
    return files | {edition.meta: python_2_names(edition.names, classes)}, parts


def archive(path: Path, folder: str, files: Mapping[str, bytes]) -> Path:
    """FOLDER/NAME in a .tar.gz."""
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            about = tarfile.TarInfo(f"{folder}/{name}")
            about.size = len(content)
            packed.addfile(about, io.BytesIO(content))
    return path


def _int(value: int) -> bytes:
    return b"M" + value.to_bytes(2, "little")
