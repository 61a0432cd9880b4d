#!/usr/bin/env bash
# What to run on a machine with a GPU, and what to look at: figures that this project's own machines cannot give.
#
#   MODEL=Qwen/Qwen2.5-Coder-1.5B-Instruct [PROBE=probe.safetensors] [TP=2] bash benchmarks/gpu_vllm.sh [OUT_DIR]
#
# Needs: pip install 'vllm==0.32.*' and pip install -e '.[vllm]' in the same environment, and the model in the local cache.
# Each step says PASS or FAIL; send the folder back with the GPU's name (nvidia-smi -L is in it).
set -u
MODEL=${MODEL:?give a model: MODEL=org/name bash benchmarks/gpu_vllm.sh}
OUT=${1:-gpu-vllm-$(date +%Y%m%d-%H%M)}
TP=${TP:-1}
PROBE=${PROBE:+--probe $PROBE}
export VLLM_USE_V2_MODEL_RUNNER=0 VLLM_NO_USAGE_STATS=1
mkdir -p "$OUT"
nvidia-smi -L >"$OUT/gpu.txt" 2>&1 || rocm-smi >"$OUT/gpu.txt" 2>&1
python -c "import vllm, torch; print(vllm.__version__, torch.__version__, torch.version.cuda)" >"$OUT/versions.txt"

step() { # name, command...
  local name=$1
  shift
  echo "== $name: $*" | tee "$OUT/$name.log"
  if "$@" >>"$OUT/$name.log" 2>&1; then echo "PASS $name"; else echo "FAIL $name (see $OUT/$name.log)"; fi
}

# 1. The contract: identity, parity with Transformers, traps. On a GPU drop the CPU settings of tests/vllm/conftest.py.
step contract python -m pytest -q tests/vllm -k "not real"

# 2. Eager mode (forward hooks): the ratio at 1, 4, 16 and 64 concurrent answers.
# shellcheck disable=SC2086
step eager python benchmarks/vllm_overhead.py "$MODEL" $PROBE --dtype bfloat16 --concurrent 1 4 16 64 --rounds 9 --out "$OUT/eager.json"

# 3. Compiled, with CUDA graphs (auxiliary hidden states). The log must say "reads ... by auxiliary hidden states".
# shellcheck disable=SC2086
step graphs python benchmarks/vllm_overhead.py "$MODEL" $PROBE --dtype bfloat16 --concurrent 1 4 16 64 --rounds 9 --compiled --out "$OUT/graphs.json"

# 4. What asynchronous scheduling, which the guard turns off, gives this machine unguarded: compare with graphs.json.
step async python - "$MODEL" "$OUT/async.json" <<'PY'
import json, sys, time
from vllm import LLM, SamplingParams
out = {}
for flag in (True, False):
    llm = LLM(model=sys.argv[1], dtype="bfloat16", max_model_len=2048, async_scheduling=flag)
    params = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
    chats = [[{"role": "user", "content": f"Explain the number {n}."}] for n in range(16)]
    llm.chat(chats, params, use_tqdm=False)
    begun = time.perf_counter()
    llm.chat(chats, params, use_tqdm=False)
    out[str(flag)] = 3200 / (time.perf_counter() - begun)
    del llm
json.dump(out, open(sys.argv[2], "w"))
PY

# 5. Ten minutes of mixed load with preemption; exits with 1 if a released token is unchecked.
# shellcheck disable=SC2086
step soak python benchmarks/vllm_soak.py "$MODEL" $PROBE --minutes 10 --concurrent 32 --out "$OUT/soak.json"

# 6. Tensor parallel, if TP is above 1: same answers, same scores to 1e-2 in bf16 as with one GPU.
if [ "$TP" -gt 1 ]; then
  step parallel python - "$MODEL" "$TP" <<'PY'
import gc, sys
from vllm import LLM, SamplingParams
from anydepth.vllm import engine_options
from anydepth.settings import parse_settings
settings = parse_settings({"guard": {"release": "monitor"}, "overrides": {"checks": True}})
told = []
for size in (1, int(sys.argv[2])):
    llm = LLM(model=sys.argv[1], tensor_parallel_size=size, dtype="bfloat16", max_model_len=2048, **engine_options(settings))
    params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True, extra_args={"anydepth": {"checks": True}})
    (answer,) = llm.chat([{"role": "user", "content": "Explain how rainbows form."}], params, use_tqdm=False)
    told.append({each["depth"]: each["score"] for each in answer.kv_transfer_params["anydepth"]["checks"]})
    del llm
    gc.collect()
print(told)
assert all(abs(told[0][depth] - told[1][depth]) < 1e-2 for depth in (0, 1, 2, 4))
PY
fi
echo "results are in $OUT"
