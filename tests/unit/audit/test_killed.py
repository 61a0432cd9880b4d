"""Processes that are killed while they write: whatever was told to be stored is there, once."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anydepth.audit import reading
from anydepth.audit.file import JsonlFile, older_files
from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit

WRITER = """
import os, signal, sys
from pathlib import Path
from anydepth.audit.file import JsonlFile

path, first, dies = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
file = JsonlFile(path, 4096, 50)

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

if dies == "before the new file":
    file._open = die
elif dies == "in the middle of a line":
    write = os.write
    def cut(descriptor, data):
        if len(data) > 2000:  # the long record below
            write(descriptor, data[:1000])
            die()
        return write(descriptor, data)
    os.write = cut
elif dies == "between the moves":
    replace, left = Path.replace, [2]
    def some(self, target):
        left[0] -= 1
        if left[0] < 0:
            die()
        return replace(self, target)
    Path.replace = some
for number in range(first, first + 3000):
    long = "x" * 2500 if dies == "in the middle of a line" and number == first + 7 else "x" * 100
    file.write({"kind": "note", "number": number, "text": long})
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def run(path: Path, first: int, dies: str, after: int | None = None) -> int:
    """Let a process write until it dies; the last number that it said it had stored."""
    command = [sys.executable, "-c", WRITER, str(path), str(first), dies]
    last = first - 1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = int(line)
            if last - first == after:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    return last


def stored(path: Path) -> list[int]:
    return [record["number"] for record in read_records(path) if record["kind"] == "note"]


@pytest.mark.parametrize("dies", ["before the new file", "in the middle of a line", "between the moves"])
def test_a_process_that_dies_at_the_worst_moment_loses_nothing(tmp_path, dies):
    path = tmp_path / "trail"
    file = JsonlFile(path, 4096, 50)
    for _ in range(3):  # there are older files to move up
        file.write({"kind": "other", "text": "x" * 3900})
    file.close()
    last = run(path, 0, dies)
    assert verify_audit(path).ok and stored(path) == list(range(last + 1))
    file = JsonlFile(path, 4096, 50)
    file.write({"kind": "note", "number": last + 1})
    file.close()
    report = verify_audit(path)
    assert report.ok and report.begins == 1, report.violations
    assert stored(path) == list(range(last + 2))
    assert report.torn == (dies == "in the middle of a line")


def test_processes_that_are_killed_at_any_moment_leave_one_trail(tmp_path):
    path, draw, acknowledged = tmp_path / "trail", random.Random(18081), []
    for _ in range(4):
        first = 1000 * len(acknowledged)
        last = run(path, first, "when somebody kills it", after=draw.randrange(20, 200))
        acknowledged.append(range(first, last + 1))
    report, numbers = verify_audit(path), stored(path)
    assert report.ok and report.begins == 1, report.violations
    assert len(set(numbers)) == len(numbers)
    for each in acknowledged:
        assert set(each) <= set(numbers)


TURNS = """
import sys, time
from pathlib import Path
from anydepth.audit.file import FileInUse, JsonlFile

stored = 0
while stored < 80:
    try:
        file = JsonlFile(Path(sys.argv[1]), 4096, 500)
    except FileInUse:
        time.sleep(0.001)
        continue
    for _ in range(9):
        try:
            file.write({"kind": "note", "number": stored, "text": sys.argv[2] * 900})
            stored += 1
        except FileInUse:  # the other one had the new file first: this record is not stored
            pass
    file.close()
print(stored)
"""


def test_two_processes_that_fight_over_a_file_leave_one_trail_that_can_be_read_at_any_time(tmp_path):
    path = tmp_path / "trail"
    JsonlFile(path, 4096, 500).close()
    fighters = [
        subprocess.Popen([sys.executable, "-c", TURNS, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    while any(each.poll() is None for each in fighters):
        report = verify_audit(path)
        assert report.ok, report.violations
    said = sum(int(each.communicate()[0]) for each in fighters)
    notes = [record for record in read_records(path) if record["kind"] == "note"]
    assert verify_audit(path).ok and len(notes) == said
    for name in "ab":
        mine = [record["number"] for record in notes if record["text"][0] == name]
        assert mine == list(range(len(mine))) and len(mine) >= 80


def test_a_file_that_is_moved_up_while_it_is_looked_for_is_found(tmp_path, monkeypatch):
    path = tmp_path / "trail"
    file = JsonlFile(path, 4096, 500)
    file.write({"kind": "note", "number": 7})
    file.close()
    looks = []

    def moving(trail: Path) -> list[Path]:
        found = older_files(trail)
        looks.append(found)
        if len(looks) == 1:  # after it was seen that there is no older one, and before the file is opened
            path.rename(tmp_path / "trail.1")
        return found

    monkeypatch.setattr(reading, "older_files", moving)
    assert stored(path) == [7] and looks[0] == []
