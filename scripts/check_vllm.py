"""Say what a release of vLLM lacks of what the plugin uses: `python scripts/check_vllm.py FOLDER`.

FOLDER is the package `vllm`, installed or unpacked from its wheel; nothing of it is imported. Exits with 1 if something
is missing. A release that lacks nothing still has to pass `make test-vllm`.
"""

import sys
from pathlib import Path

from anydepth.vllm.internals import CHECKED, missing


def main() -> int:
    """Check the folder that the command line names."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "v1").is_dir():
        print(f"give the folder of the package vllm, which has a folder v1: {' '.join(sys.argv)}", file=sys.stderr)
        return 2
    found = missing(Path(sys.argv[1]))
    for each in found:
        print(each)
    if not found:
        print(f"all that the plugin uses is there; last checked: {CHECKED}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
