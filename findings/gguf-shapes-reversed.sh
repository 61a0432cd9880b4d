#!/usr/bin/env bash
# GGUFReader reports a shape that its own data does not have.
#
# Guess: `tensor.shape` is the shape that was given to the writer, and that of `tensor.data`.
# What happens: `.shape` is in ggml's order, reversed; `.data.shape` is in numpy's order and, for a quantised tensor,
#   counts bytes in its last axis.
# Versions: numpy 2.4.6, gguf 0.19.0; Python 3.11
# Output seen on 2026-11-28:
#   plain: written [2, 64], .shape [64, 2], .data.shape [2, 64] of float32
#   quantised: written [2, 64], .shape [64, 2], .data.shape [2, 68] of uint8
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile numpy==2.4.6 gguf==0.19.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import tempfile

import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

weights = numpy.ones((2, 64), numpy.float32)
q8 = GGMLQuantizationType.Q8_0
with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
    writer = GGUFWriter(file.name, "llama")
    writer.add_tensor("plain", weights)
    writer.add_tensor("quantised", quants.quantize(weights, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    seen = {t.name: (t.shape.tolist(), list(t.data.shape), str(t.data.dtype)) for t in GGUFReader(file.name).tensors}
for name, (shape, data, kind) in seen.items():
    print(f"{name}: written [2, 64], .shape {shape}, .data.shape {data} of {kind}")
raise SystemExit(
    0 if seen == {"plain": ([64, 2], [2, 64], "float32"), "quantised": ([64, 2], [2, 68], "uint8")} else 1
)
PYTHON
