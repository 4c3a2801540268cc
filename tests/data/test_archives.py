"""Unpacking: nothing leads out, nothing is half written, a stopped run goes on."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from self1e.data import archives
from self1e.data.archives import MARKERS, Unpacked, is_archive, read_marker, unpack
from self1e.errors import DatasetError

FILES = {"top/a.txt": b"one", "top/inner/b.bin": bytes(3000), "top/inner/c.txt": b""}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture(params=["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def archive(request, tmp_path) -> Path:
    path = tmp_path / f"data.{request.param}"
    if request.param == "zip":
        return write_zip(path, FILES)
    return write_tar(path, FILES, f"w:{request.param[4:]}")


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and MARKERS not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_kind_of_archive_is_unpacked(archive, tmp_path):
    assert is_archive(archive)
    assert unpack(archive, tmp_path / "out") == Unpacked(archive.name, 3, 3003, 3)
    assert contents(tmp_path / "out") == FILES


def test_leading_folders_are_left_out(archive, tmp_path):
    unpack(archive, tmp_path / "out", strip="top/inner")
    assert set(contents(tmp_path / "out")) == {"b.bin", "c.txt"}


def test_what_is_done_is_not_done_again(archive, tmp_path):
    out = tmp_path / "out"
    unpack(archive, out)
    (out / "top" / "a.txt").unlink()  # the user's own business
    assert unpack(archive, out).new == 0
    assert not (out / "top" / "a.txt").exists()
    archive.unlink()  # to save room
    assert read_marker(archive, out) == Unpacked(archive.name, 3, 3003, 0)


def test_another_archive_of_the_same_name_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a": b"1"})
    unpack(path, tmp_path / "out")
    write_zip(path, {"a": b"22", "b": b"3"})
    assert unpack(path, tmp_path / "out").new == 2
    assert contents(tmp_path / "out") == {"a": b"22", "b": b"3"}


def test_a_stopped_run_goes_on_where_it_stopped(archive, tmp_path, monkeypatch):
    out = tmp_path / "out"

    class StopError(Exception):
        pass

    def stop(members, count):
        for number, member in enumerate(members):
            if number == 2:
                raise StopError
            yield member

    with pytest.raises(StopError):
        unpack(archive, out, progress=stop)
    assert set(contents(out)) == {"top/a.txt", "top/inner/b.bin"}
    assert read_marker(archive, out) is None
    assert unpack(archive, out).new == 1
    assert contents(out) == FILES


def test_a_file_takes_its_name_only_when_it_is_whole(archive, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(archives, "_CHUNK", 100)
    before = Path.open
    written = []

    def fail_later(self, mode="r", *rest, **named):
        file = before(self, mode, *rest, **named)
        if self.name.endswith(".part") and self.parent.name == "inner":
            written.append(self)
            monkeypatch.setattr(Path, "open", before)
            file.close()  # the next write fails, as on a disk that is gone
        return file

    monkeypatch.setattr(Path, "open", fail_later)
    with pytest.raises((DatasetError, ValueError)):
        unpack(archive, out)
    assert len(written) == 1
    assert set(contents(out)) == {"top/a.txt"}
    assert unpack(archive, out).new == 2
    assert contents(out) == FILES


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "a\\..\\..\\x", "\\x", "C:\\x"])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_paths_that_lead_out_are_refused(tmp_path, name, write):
    path = write(tmp_path / "bad.archive", {"good": b"1", name: b"2"})
    with pytest.raises(DatasetError, match="leads out of the folder"):
        unpack(path, tmp_path / "a" / "b")
    assert contents(tmp_path / "a") == {"b/good": b"1"}
    assert not (tmp_path / "x").exists()
    assert not Path("/x").exists()
    assert read_marker(path, tmp_path / "a" / "b") is None


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "bad.tar", "w") as file:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = kind, "/etc"
        file.addfile(entry)
        inside = tarfile.TarInfo("link/passwd")
        file.addfile(inside)
    with pytest.raises(DatasetError, match="is a link or a device"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_links_of_a_zip_are_refused(tmp_path):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(entry, "/etc")
    with pytest.raises(DatasetError, match="is a link or a device"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_bombs_stop_at_the_limits(archive, tmp_path):
    with pytest.raises(DatasetError, match=r"more than 2,000,000 files or 100 bytes"):
        unpack(archive, tmp_path / "out", max_bytes=100)
    with pytest.raises(DatasetError, match="more than 2 files"):
        unpack(archive, tmp_path / "out", max_files=2)


def test_a_zip_that_claims_less_than_it_holds_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a": bytes(50_000)})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")  # the directory's entry: uncompressed size at 24
    content[place + 24 : place + 28] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DatasetError):
        unpack(path, tmp_path / "out", max_bytes=1000)
    assert contents(tmp_path / "out") == {}


def test_a_damaged_archive_is_named(archive, tmp_path):
    content = archive.read_bytes()
    for length in (0, 10, len(content) // 3):
        archive.write_bytes(content[:length])
        with pytest.raises(DatasetError, match=f"{archive.name}.*(Download|download)"):
            unpack(archive, tmp_path / "out")
        assert read_marker(archive, tmp_path / "out") is None
    for name, found in contents(tmp_path / "out").items():
        assert found == FILES[name]


def test_a_wrong_byte_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", b"0123456789")
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780"))
    with pytest.raises(DatasetError, match="CRC"):
        unpack(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_missing_archive_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "no.zip", tmp_path / "out")


@pytest.mark.parametrize("marker", ["", "[]", "{}", json.dumps({"size": 1, "modified": 2})])
def test_a_damaged_marker_counts_as_none(archive, tmp_path, marker):
    out = tmp_path / "out"
    unpack(archive, out)
    (out / MARKERS / f"{archive.name}.json").write_text(marker)
    assert read_marker(archive, out) is None
    assert unpack(archive, out).new == 0  # every file is there
