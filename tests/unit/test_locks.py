"""Two processes never write to one place."""

import subprocess
import sys
from pathlib import Path

import pytest

from anydepth.errors import ConfigError
from anydepth.locks import hold, lock

_TAKE = "import sys, pathlib, anydepth.locks as l; l.lock(pathlib.Path(sys.argv[1])); {then}"


def take(path: Path, then: str = "print('taken')") -> subprocess.CompletedProcess[str]:
    """Another process takes the lock."""
    command = [sys.executable, "-c", _TAKE.format(then=then), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_second_process_is_refused_and_may_go_on_afterwards(tmp_path: Path) -> None:
    with hold(tmp_path / "out"):
        refused = take(tmp_path / "out")
        assert refused.returncode != 0 and "another process is writing to" in refused.stderr
    assert take(tmp_path / "out").stdout == "taken\n"


def test_the_way_a_path_is_written_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with hold(Path("out")), pytest.raises(ConfigError, match="another process"):
        lock(tmp_path / "link" / "out")


def test_a_process_that_dies_gives_its_lock_back(tmp_path: Path) -> None:
    assert take(tmp_path / "out", "import os; os._exit(9)").returncode == 9
    lock(tmp_path / "out").release()


def test_parts_and_neighbours_have_locks_of_their_own(tmp_path: Path) -> None:
    with hold(tmp_path / "out", "part-0-of-2"), hold(tmp_path / "out", "part-1-of-2"), hold(tmp_path / "other"):
        assert take(tmp_path / "out").returncode == 0


def test_a_place_that_no_lock_can_be_in_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / "file" / "out", tmp_path / "loop", Path("/"), Path("/proc/out")):
        with pytest.raises(ConfigError, match="another place"):
            lock(place)
