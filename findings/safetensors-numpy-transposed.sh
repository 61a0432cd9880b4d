#!/usr/bin/env bash
# safetensors writes a transposed numpy array in the wrong order.
#
# Guess: `save` writes the values that the array shows, or refuses an array that is not contiguous, as
#   `safetensors.torch` does.
# What happens: the bytes are written in memory order under the transposed shape: other values come back, without an
#   error.
# Versions: numpy 2.4.6, safetensors 0.8.0; Python 3.11
# Output seen on 2026-11-28:
#   saved [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], after ascontiguousarray [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile numpy==2.4.6 safetensors==0.8.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import numpy
from safetensors.numpy import load, save

weights = numpy.arange(6.0).reshape(2, 3)
back = load(save({"w": weights.T}))["w"]
contiguous = load(save({"w": numpy.ascontiguousarray(weights.T)}))["w"]
print(f"saved {weights.T.tolist()}, loaded {back.tolist()}, after ascontiguousarray {contiguous.tolist()}")
raise SystemExit(0 if back.shape == (3, 2) and (back != weights.T).any() and (contiguous == weights.T).all() else 1)
PYTHON
