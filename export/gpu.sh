#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can show: the tests marked gpu; then the bundle exported to every GPU runtime
# that is installed, compared with its reference, and profiled side by side.
#
#   BUNDLE=mlruns/bundles/demo DATA=data/starter BIN=.venv/bin export/gpu.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=${BIN:-.venv/bin}
bundle=${BUNDLE:-mlruns/bundles/demo}
data=${DATA:-data/starter}

fail() {
  echo "gpu: $1" >&2
  exit 1
}

gpus=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null) || gpus=""
[[ -n $gpus ]] || fail "no NVIDIA GPU is present here (nvidia-smi finds none); run this where there is one"
[[ -x $bin/l2r2 ]] || fail "$bin/l2r2 is missing; run: make setup"
[[ -f $bundle/manifest.json ]] || fail "$bundle is no bundle; run: make demo"

gpu=${gpus%%$'\n'*}
capability=${gpu##*, }
architecture=SM${capability//./}
echo "gpu: $gpu"

"$bin/python" -m pytest -m gpu

# Why a runtime cannot be used here, in one line; nothing where it can.
why_not() {
  "$bin/python" - "$1" "$architecture" <<'PYTHON'
import sys

from l2r2.runtimes import why_not
from l2r2.runtimes.tensorrt_rtx_engine import known_capabilities

runtime, architecture = sys.argv[1:]
reason = why_not(runtime)
if reason is None and runtime == "tensorrt-rtx" and architecture not in known_capabilities():
    reason = f"TensorRT-RTX builds for no {architecture}; it knows {', '.join(known_capabilities())}"
print(reason or "")
PYTHON
}

runtimes=()
failed=()
for runtime in onnxruntime-cuda onnxruntime-tensorrt tensorrt tensorrt-rtx; do
  reason=$(why_not "$runtime")
  if [[ -n $reason ]]; then
    echo "gpu: $runtime left out: $reason"
    continue
  fi
  runtimes+=("$runtime")
  build=()
  [[ $runtime != tensorrt* ]] || build+=(--build)
  [[ $runtime != tensorrt-rtx ]] || build+=(--architectures "$architecture")
  precisions=(fp32 fp16 int8)
  [[ $runtime != onnxruntime-cuda ]] || precisions=(fp32 fp16) # it turns INT8 back into floats
  for precision in "${precisions[@]}"; do
    echo "gpu: exporting to $runtime/$precision"
    "$bin/l2r2" export "$bundle" --data "$data" --runtime "$runtime" --precision "$precision" "${build[@]}" ||
      failed+=("$runtime/$precision")
  done
done
((${#runtimes[@]})) || fail "none of the GPU runtimes can be used here; the lines above say why"

joined=$(IFS=,; echo "${runtimes[*]}")
"$bin/l2r2" profile "$bundle" --data "$data" --runtime "onnxruntime,$joined" --precision fp32,fp16,int8 --layers

((${#failed[@]} == 0)) || fail "not exported: ${failed[*]}; the lines above say why"
