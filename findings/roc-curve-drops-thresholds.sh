#!/usr/bin/env bash
# `roc_curve` drops thresholds that are the best within a budget.
#
# Guess: the last point of `roc_curve` within a false-positive budget is the best threshold for that budget.
# What happens: points on a straight piece of the curve are left out by default (drop_intermediate=True); where the
#   budget falls inside such a piece a worse threshold is found.
# Versions: numpy 2.4.6, scikit-learn 1.9.1; Python 3.11
# Output seen on 2026-11-28:
#   drop_intermediate=True: 51 thresholds; best within 0.24: threshold 0.8, false positives 0.196, true positives 0.575
#   drop_intermediate=False: 55 thresholds; best within 0.24: threshold 0.7, false positives 0.218, true positives 0.620
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile numpy==2.4.6 scikit-learn==1.9.1
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import numpy
from sklearn.metrics import roc_curve

random = numpy.random.default_rng(0)
labels = random.integers(0, 2, 400)
scores = (random.normal(size=400) + labels).round(1)
BUDGET = 0.24  # the false positives that may be spent
best = []
for drop in (True, False):
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=drop)
    chosen = int((fpr <= BUDGET).nonzero()[0][-1])
    best.append(tpr[chosen])
    print(f"drop_intermediate={drop}: {len(thresholds)} thresholds; best within {BUDGET}: threshold "
          f"{thresholds[chosen]:.1f}, false positives {fpr[chosen]:.3f}, true positives {tpr[chosen]:.3f}")
raise SystemExit(0 if best[1] > best[0] + 0.01 else 1)
PYTHON
