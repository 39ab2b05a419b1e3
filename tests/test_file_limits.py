"""Files that never end, lead nowhere, or claim and unpack to more than there is room for."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from image_files import class_folders, noise, save
from labo import cli, tasks
from labo.errors import UserError
from labo.tasks import file_limits, npz_files
from labo.tasks.translation import text_files

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices have no name there")


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets the variable for its process; here it is taken back."""
    monkeypatch.setenv(file_limits.VARIABLE, "1TB")


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def npy(shape: tuple[int, ...], content: bytes = b"", kind: str = "|u1") -> bytes:
    """An array of bytes whose header claims this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def test_arrays_are_those_of_numpy(tmp_path: Path):
    arrays: dict[str, Any] = {"images": noise(0, 3, 4, 4), "names": np.array(["a", "bc"]), "one": np.array(1.5)}
    arrays |= {"columns": np.asfortranarray(noise(1, 4, 3)), "none": np.zeros((0, 3))}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", **arrays)
        read = npz_files.load(tmp_path / "a.npz")
        assert set(read) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"images.npy": npy((10**12, 8, 8))}, "the array 'images' claims the shape .* 64 TB, but holds 0 B"),
        ({"images.npy": npy((2**62, 2**62), b"x")}, "claims the shape"),
        ({"images.npy": npy((-3,), b"abc")}, "claims the shape"),
        ({"images.npy": npy((2,), b"abc")}, "claims the shape"),
        ({"images.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': (((("}, "Cannot read"),
        ({"images.npy": b"\x93NUMPY\x09\x00\x10\x00"}, "Cannot read|unknown version"),
        ({"images.npy": b"no array"}, "Cannot read"),
        ({"archive/data.pkl": b"x", "archive/data/0": b"y"}, "an archive of PyTorch; save the arrays with numpy.savez"),
        ({"images.npy": npy((2,), b"ab"), "README": b"text"}, "it holds 'README', which is no array"),
    ],
    ids=["rows", "overflow", "negative", "short", "torn header", "version", "no array", "torch", "other"],
)
@pytest.mark.parametrize("command", ["train image --data", "evaluate"])
def test_arrays_that_are_not_what_they_claim(tmp_path: Path, capsys: Any, members: dict, told: str, command: str):
    path = archive(tmp_path / "x.npz", **members)
    with pytest.raises(UserError, match=told):
        npz_files.load(path)
    if command == "evaluate":
        return
    assert cli.main([*command.split(), str(path)]) == 2
    assert capsys.readouterr().err.startswith("labo: Cannot read '")


def test_what_torch_saves_is_no_npz_file(tmp_path: Path):
    torch.save({"images": torch.zeros(3)}, tmp_path / "x.npz")
    with pytest.raises(UserError, match="an archive of PyTorch"):
        npz_files.load(tmp_path / "x.npz")


def test_an_archive_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    np.savez_compressed(tmp_path / "x.npz", images=images, labels=np.arange(1000) % 2)
    assert (tmp_path / "x.npz").stat().st_size < 2**15
    asked = ["train", "image", "--data", str(tmp_path / "x.npz"), "--output", str(tmp_path / "r")]
    with monkeypatch.context() as patched:
        patched.setattr(np.lib.format, "read_array", None)
        assert cli.main([*asked, "--max-bytes", "3MB"]) == 2
    assert (
        "it unpacks to 3.08 MB, more than 3 MB; --max-bytes, or the environment variable LABO_MAX_BYTES, allows more"
        in capsys.readouterr().err
    )
    assert len(npz_files.load(tmp_path / "x.npz")["images"] if os.environ.pop(file_limits.VARIABLE) else ()) == 1000
    monkeypatch.setattr(file_limits.machine, "memory", lambda: 6_000_000)  # of which half is the default
    with pytest.raises(UserError, match="more than 3 MB"):
        npz_files.load(tmp_path / "x.npz")
    assert cli.main([*asked, "--max-bytes", "much"]) == 2
    assert "Expected --max-bytes to be a size such as 8GB or 500MB, but got 'much'" in capsys.readouterr().err


def test_text_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.de.gz"
    path.write_bytes(gzip.compress(b"ein Hund\n" * 100_000))
    assert len(text_files.read_lines(path)) == 100_000
    path.write_bytes(path.read_bytes() + gzip.compress(b"x\n"))  # whose last part is small
    monkeypatch.setenv(file_limits.VARIABLE, "800kB")
    with pytest.raises(UserError, match=r"it unpacks to .*, more than 800 kB; --max-bytes, or"):
        text_files.read_lines(path)


@posix
def test_only_regular_files_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / "pipe.npz")
    os.symlink("/dev/zero", tmp_path / "zero.npz")
    os.symlink("itself.npz", tmp_path / "itself.npz")
    os.symlink("nothing", tmp_path / "dangling.npz")
    expected = {
        "pipe.npz": "to be a regular file, but it is a pipe",
        "zero.npz": "to be a regular file, but it is a device",
        "itself.npz": "itself.npz",
        "dangling.npz": "dangling.npz' leads to no file",
    }
    for name, told in expected.items():
        for read in (npz_files.load, text_files.read_lines):
            with pytest.raises(UserError, match=told):
                read(tmp_path / name)
        for command in (
            ["train", "image", "--data", tmp_path / name],
            ["train", "translation", "--source", tmp_path / name, "--target", tmp_path / name],
        ):
            assert cli.main(list(map(str, command))) == 2
            err = capsys.readouterr().err
            assert err.startswith("labo: ")
            assert len(err.splitlines()) == 1


@posix
def test_pipes_devices_and_links_among_images(tmp_path: Path):
    class_folders(tmp_path, {"cat": 20, "dog": 30})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "cat" / "zero.png")
    os.symlink("itself.png", tmp_path / "dog" / "itself.png")
    os.symlink("nothing.png", tmp_path / "dog" / "dangling.png")
    strict = tasks.create("image", data=str(tmp_path))
    strict.fingerprint()
    with pytest.raises(UserError, match=r"Cannot read the image '.*'; --skip-unreadable|--skip-unreadable leaves"):
        strict.splits(0)
    task = tasks.create("image", data=str(tmp_path), skip_unreadable=True)
    splits = task.splits(0)
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 50
    assert f"4 unreadable images are left out of the train part, '{tmp_path / 'cat' / 'pipe.png'}' the first." in (
        splits.notes
    )
    with pytest.raises(UserError, match="it is not a regular file"):
        task.read_inputs(tmp_path / "cat", splits.preprocessing)
    features, unreadable = task.read_readable(tmp_path / "cat", splits.preprocessing)
    assert (len(features), len(unreadable)) == (20, 2)
    for name in ("cat/pipe.png", "cat/zero.png"):
        with pytest.raises(UserError, match="to be a regular file"):
            task.read_inputs(tmp_path / name, splits.preprocessing)
    with pytest.raises(UserError, match="leads to no file"):
        task.read_inputs(tmp_path / "dog" / "dangling.png", splits.preprocessing)
    save(noise(0, 8, 8, 3), tmp_path / "one.png")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "x.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"No image in '.*torn' can be read"):
        task.read_readable(tmp_path / "torn", splits.preprocessing)
    with pytest.raises(UserError, match="has no images, so --skip-unreadable does not apply"):
        tasks.create("digits").read_readable(tmp_path, {})


def test_sizes_by_hand():
    assert [file_limits.parse_size(text) for text in ("1", "8GB", "1.5 kb", "2e3", "3B")] == [
        1,
        8 * 10**9,
        1500,
        2000,
        3,
    ]
    for text in ("", "-1", "0", "GB", "1XB", "1e999", "nan"):
        with pytest.raises(UserError, match="a size such as 8GB"):
            file_limits.parse_size(text)
    assert file_limits.machine.memory()
