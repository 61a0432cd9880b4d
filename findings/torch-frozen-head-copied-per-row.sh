#!/usr/bin/env bash
# A frozen linear layer in bfloat16 copies its weight once for each row of a batch, if the input is a slice.
#
# Guess: freezing a weight (`requires_grad_(False)`, or an adapter of PEFT around the model) changes nothing about inference.
# What happens: for an input of three dimensions that is not contiguous, such as the last token's states of a batch
#   (`states[:, -1:]`, which is what `logits_to_keep` gives the head), a weight that requires a gradient is multiplied in one
#   `mm`, under `no_grad` too. A frozen one is expanded to the batch and multiplied by `bmm`, which copies it in bfloat16
#   on the CPU: with a vocabulary of 49,152, a hidden size of 576 and 16 rows that is 900 MB a call. `.contiguous()` on the
#   input avoids it.
# Versions: torch 2.13.0 (CPU); Python 3.11
# Output seen on 2026-11-29:
#   weight requires grad: mm, 0.0 weights copied
#   weight frozen: bmm, 4.0 weights copied
#   weight frozen, contiguous input: mm, 0.0 weights copied
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import math
import sys

import torch
from torch.profiler import ProfilerActivity, profile

ROWS, HIDDEN, VOCABULARY = 4, 64, 4096
head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.bfloat16)
states = torch.randn(ROWS, 7, HIDDEN, dtype=torch.bfloat16)[:, -1:]


def run(what, given):
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        head(given)
    events = list(seen.events())
    product = next(name for name in ("bmm", "mm") if any(each.name == f"aten::{name}" for each in events))
    copied = sum(math.prod(each.input_shapes[0]) for each in events if each.name == "aten::copy_")
    weights = round(copied / head.weight.numel(), 1)
    print(f"{what}: {product}, {weights} weights copied")
    return product, weights


found = [run("weight requires grad", states)]
head.requires_grad_(False)
found += [run("weight frozen", states), run("weight frozen, contiguous input", states.contiguous())]
as_told = found[1] == ("bmm", float(ROWS)) and all(found[each][0] == "mm" and found[each][1] < 1 for each in (0, 2))
sys.exit(0 if as_told else 1)
PYTHON
