"""A file is written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from anydepth.atomic import write_whole


def test_folders_are_made_and_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "file", b"one")
    write_whole(tmp_path / "a" / "b" / "file", b"two")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"two"


def test_a_new_file_has_the_mode_that_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    os.chown(file, 65534, 65534)
    file.chmod(0o604)
    write_whole(file, b"two")
    there = file.stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (65534, 65534, 0o604)


def test_a_chain_of_links_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    (tmp_path / "second").symlink_to("file")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    write_whole(tmp_path / "first", b"two")
    assert (tmp_path / "first").is_symlink() and (tmp_path / "second").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"two"


def test_links_that_lead_round_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        write_whole(tmp_path / "a", b"")


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
def test_a_read_only_file_stays(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    file.chmod(mode)
    with pytest.raises(PermissionError, match="read-only; make it writable"):
        write_whole(file, b"two")
    assert file.read_bytes() == b"one" and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_whole("/dev/full", b"two")
    write_whole("/dev/null", b"two")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one" and [path.name for path in tmp_path.iterdir()] == ["file"]
