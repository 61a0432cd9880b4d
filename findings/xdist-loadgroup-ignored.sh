#!/usr/bin/env bash
# pytest-xdist's loadgroup does nothing on pytest 9.2.
#
# Guess: with `--dist loadgroup`, all tests marked with the same xdist_group run on one worker.
# What happens: they are spread over the workers as without the mark, without a warning. xdist writes the group into the
#   private `item._nodeid`, which pytest 9.2 no longer reads; fixtures of a module are then made once per worker.
#   `--dist loadfile` keeps a file's tests together.
# Versions: pytest 9.2.0, pytest-xdist 3.8.0; Python 3.11
# Output seen on 2026-11-28:
#   loadgroup: 2 workers, loadfile: 1 worker
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile pytest==9.2.0 pytest-xdist==3.8.0
cat > "$work/test_group.py" <<'PYTHON'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(20))
def test_it(number):
    time.sleep(0.1)
    with open(os.environ["SEEN"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PYTHON
cd "$work"
for way in loadgroup loadfile; do
  SEEN="$work/$way" "$work/venv/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist "$way" test_group.py > "$work/$way.log" || { cat "$work/$way.log"; exit 1; }
done
grouped=$(sort -u "$work/loadgroup" | wc -l)
filed=$(sort -u "$work/loadfile" | wc -l)
echo "loadgroup: $grouped workers, loadfile: $filed worker"
[ "$grouped" = 2 ] && [ "$filed" = 1 ]
