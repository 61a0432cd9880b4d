"""One way of reading text, of writing files, and of telling pipes from files."""

import os
import threading
from pathlib import Path

import pytest

from anydepth.errors import ConfigError
from anydepth.files import (
    check_destination,
    check_text,
    decode_text,
    is_stream,
    parse_json,
    public_name,
    read_json,
    read_text,
    read_toml,
    write_whole,
)
from anydepth.types import json_number
from tests.disk import full_disk


def test_text_is_read_without_its_byte_order_mark_whatever_ends_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfH\xc3\xa9\r\nyou\r")
    assert read_text(path) == "Hé\nyou\n"
    assert decode_text(b"\xef\xbb\xbf", "it") == ""


def test_toml_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "x"\r\n')
    assert read_toml(path) == {"name": "x"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"H\xe9 x", "--text a is not UTF-8 text (invalid continuation byte at byte 1)"),
        (b"a = ", "--text a is not TOML"),
    ],
)
def test_what_is_no_text_or_no_toml_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(tmp_path / "a", "--text a")
    assert says in str(caught.value)


def test_a_folder_or_nothing_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "Is a directory"), (tmp_path / "x", "No such file")):
        with pytest.raises(ConfigError, match=says):
            read_text(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{", '"\\ud800"'])
def test_json_that_cannot_be_used_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^chat "):
        parse_json(text, "chat")


def test_a_list_in_place_of_an_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.run.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match="is a list, not the manifest of a scan; remove it"):
        read_json(path, "the manifest of a scan")


def test_text_with_bytes_that_were_not_utf8_is_named() -> None:
    assert check_text("Hé", "PROMPT") == "Hé"
    with pytest.raises(ConfigError, match="PROMPT holds a character that is no text"):
        check_text(os.fsdecode(b"H\xe9"), "PROMPT")


def test_pipes_and_devices_are_streams_and_files_and_folders_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    streams = [tmp_path / "pipe", Path("/dev/null"), Path("/dev/full"), Path("/dev/stdout"), Path("/dev/fd/9")]
    assert all(map(is_stream, streams))
    assert not any(map(is_stream, [tmp_path, tmp_path / "file", tmp_path / "nothing"]))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old\n")
    with full_disk(100), pytest.raises(ConfigError, match=r"cannot write .*a\.json: File too large; make room"):
        write_whole(path, "new\n" * 1000)
    assert path.read_text() == "old\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "x"


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "figures\n")
    reader.join()
    assert got == ["figures\n"] and pipe.is_fifo()


@pytest.mark.parametrize("place", ["/dev/full", ".", "file/x", "folder"])
def test_what_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_whole(tmp_path / place, "x" * 10_000)


def test_a_destination_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for good in (tmp_path / "new", tmp_path / "file", Path("/dev/null")):
        check_destination(good, "--json")
    for bad, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x", "does not exist"),
        (tmp_path / "file/x", "not"),
    ):
        with pytest.raises(ConfigError, match=f"--json .*{says}"):
            check_destination(bad, "--json")


def test_of_a_path_only_its_last_part_is_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert public_name(tmp_path / "model") == public_name(".") == "model"
    assert public_name("org/model") == "org/model"


def test_json_has_no_number_that_is_not_finite() -> None:
    assert [json_number(value) for value in (1, 0.5, None, float("nan"), float("inf"))] == [1.0, 0.5, None, None, None]
