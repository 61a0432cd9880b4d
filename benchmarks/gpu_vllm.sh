#!/usr/bin/env bash
# What to run on a machine with a GPU, and what to look at: what this project's own machines cannot run.
#
#   MODEL=Qwen/Qwen2.5-Coder-1.5B-Instruct [PROBE=probe.safetensors] bash benchmarks/gpu_vllm.sh [OUT_DIR]
#   CONFIG=config.json TOKENIZER=org/name bash benchmarks/gpu_vllm.sh [OUT_DIR]     random weights of that shape
#
# Needs: pip install -e '.[vllm]' pytest hypothesis in one environment, and the model or the tokenizer in the local cache.
# Takes less than ten minutes: each step is cut at its limit. Each says PASS, FAIL or CUT; send the folder back. The GPU's
# name is in it. Not run by us: we have no GPU.
set -u
cd "$(dirname "$0")/.." || exit 2
OUT=${1:-gpu-vllm-$(date +%Y%m%d-%H%M)}
mkdir -p "$OUT"
export VLLM_NO_USAGE_STATS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
{ nvidia-smi -L || rocm-smi; } >"$OUT/gpu.txt" 2>&1
python -c "import vllm, torch; print(vllm.__version__, torch.__version__, torch.version.cuda)" >"$OUT/versions.txt"

step() { # name, seconds, command...
  local name=$1 limit=$2 code
  shift 2
  echo "== $name: $*" >"$OUT/$name.log"
  timeout "$limit" "$@" >>"$OUT/$name.log" 2>&1
  code=$?
  case $code in
    0) echo "PASS $name" ;;
    124) echo "CUT  $name after $limit s (see $OUT/$name.log)" ;;
    *) echo "FAIL $name (see $OUT/$name.log)" ;;
  esac
}

if [ -n "${CONFIG:-}" ]; then
  MODEL=$OUT/random
  PROBE=$OUT/random-probe.safetensors
  step weights 60 python benchmarks/random_model.py "$CONFIG" "${TOKENIZER:?give a tokenizer: TOKENIZER=org/name}" "$MODEL"
fi
MODEL=${MODEL:?give MODEL=org/name, or CONFIG=config.json and TOKENIZER=org/name}
RACE=(python benchmarks/vllm_overhead.py "$MODEL" --dtype bfloat16 --memory 0.4 --concurrent 1 4 16 --rounds 3)
[ -n "${PROBE:-}" ] && RACE+=(--probe "$PROBE")

# 1. Everything that the plugin uses is in this vLLM.
step source 10 python scripts/check_vllm.py "$(python -c 'import pathlib, vllm; print(pathlib.Path(vllm.__file__).parent)')"

# 2. With the first and the second model runner: guarded over unguarded throughput with asynchronous scheduling and compiled
#    graphs. Told answers of the wrong length fail the step. The log must say "reads ... by auxiliary hidden states".
for runner in 0 1; do
  step "async-runner$runner" 170 env VLLM_USE_V2_MODEL_RUNNER=$runner \
    "${RACE[@]}" --compiled --asynchronous --out "$OUT/async-runner$runner.json"
done

# 3. The same answers, verdicts and scores as on the CPU, on a tiny model: both runners, with and without asynchronous
#    scheduling.
for runner in 0 1; do
  step "contract-runner$runner" 80 env VLLM_USE_V2_MODEL_RUNNER=$runner \
    python -m pytest -q tests/vllm/test_guard.py -k "unguarded_one or transformers or sixteen or end_of_turn"
done
echo "results are in $OUT"
