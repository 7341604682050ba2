#!/usr/bin/env bash
# What can be learned from a machine with a GPU in 10 minutes: builds the CUDA kernels, tests them and
# the Triton ones, measures both, trains, and writes one report, with a summary of one screen.
#
#   tools/gpu_check.sh [--out REPORT] [--official DIR] [--dcnv4 DIR] [--cpu]
#
# Needs python3 with a CUDA build of torch, the other dependencies in pyproject.toml and pytest, a C++
# compiler and nvcc of torch's CUDA release. Mask R-CNN and UPerNet are trained too where mmcv has CUDA
# operators and mmdet and mmseg are there. --official names the folder `ops_dcnv3` of InternImage with
# `DCNv3` built in place, --dcnv4 one that holds the built package `DCNv4`; the benchmark times these ops
# with ours. --cpu is a dry run of every step, small, without a GPU and without building. PYTHON chooses
# another interpreter.
#
# Each step has a limit, the most valuable come first, and none starts after 10 minutes. Estimate for an
# H200 with 16 cores: build 150 s, tests 100 s, benchmarks 100 s, training 100 s, 7.5 minutes in all.
# The report holds what has run, also after Ctrl-C. The exit status is that of the first step that
# failed; later steps run all the same.
set -uo pipefail

fail() {
  echo "gpu_check: $*" >&2
  exit 2
}

report=gpu_report.txt
device=cuda
theirs='' probabilities=() logits=()
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) device=cpu && shift && continue ;;
    --out) report=${2:?--out needs a file} ;;
    --official)
      official=$(realpath -e "${2:?--official needs a folder}") || fail "no folder $2"
      theirs+=":$official:$official/functions"
      probabilities=(--against dcnv3_func:DCNv3Function)
      ;;
    --dcnv4)
      theirs+=":$(realpath -e "${2:?--dcnv4 needs a folder}")" || fail "no folder $2"
      logits=(--against against:dcnv4)
      ;;
    *) fail "unknown argument $1; see the head of this file" ;;
  esac
  shift 2
done
# Before the folder changes, as paths may be relative. A Python that is a link belongs to an environment.
report=$(realpath -m "$report")
python=$(realpath -s "$(command -v "${PYTHON:-python3}")" 2>/dev/null) || fail "no ${PYTHON:-python3}"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
here=$PWD

[ $device = cpu ] || "$python" -c 'import torch; torch.cuda.init()' ||
  fail "$python sees no GPU through torch"
"$python" -m pytest --version >/dev/null 2>&1 || fail 'pytest is missing: pip install pytest'
: >"$report" || fail "cannot write $report"

work=$(mktemp -d)
status=0
summary=()
finish() {
  printf '\n## Summary\n\n' >>"$report"
  printf '%s\n' "${summary[@]}" | tee -a "$report"
  rm -rf "$work"
  echo "The whole report: $report"
}
trap finish EXIT

# step LIMIT TITLE COMMAND ...: the summary gets what matches $highlights, or else the last line.
highlights='$.' # nothing
step() {
  local limit=$1 title=$2 start=$SECONDS lines code=0 result=ok
  shift 2
  [ "$limit" -le $((600 - SECONDS)) ] || limit=$((600 - SECONDS))
  printf '\n## %s\n\n$ %s\n' "$title" "$*" >>"$report"
  if [ "$limit" -le 0 ]; then
    summary+=("NOT RUN $title (the 10 minutes are over)")
    return
  fi
  echo "$title (at most $limit s)"
  lines=$(wc -l <"$report")
  timeout -k 5 "$limit" "$@" >>"$report" 2>&1 || code=$?
  # pytest found no test that runs on a CPU.
  [ "$device,$code" != cpu,5 ] || code=0
  case $code in
    0) ;;
    124 | 137) result=STOPPED ;;
    *) result="FAILED ($code)" ;;
  esac
  [ "$code" -eq 0 ] || [ "$status" -ne 0 ] || status=$code
  summary+=("$(printf '%-7s %3d s  %s' "$result" $((SECONDS - start)) "$title")")
  while IFS= read -r line; do summary+=("               ${line:0:105}"); done < <(
    tail -n +$((lines + 1)) "$report" | grep -oE "$highlights" || tail -n 1 "$report"
  )
  [ "$result" = ok ] || echo "$result after $((SECONDS - start)) s" >>"$report"
}

if [ $device = cuda ]; then
  highlights='NVIDIA.*' step 20 'GPU' nvidia-smi
fi
step 60 'Versions' "$python" -c \
  'import platform, torch; print("Python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)'
mkdir -p "$work/lib/ops_dcnv3"
if [ $device = cuda ]; then
  step 300 'Build' env OPS_DCNV3_CUDA=1 "$python" setup.py build_ext --build-lib "$work/lib" \
    --build-temp "$work/temp"
else
  step 20 'Build' cp ops_dcnv3/_C*.so "$work/lib/ops_dcnv3"
fi
# The packages beside the extension just built, so that nothing has to be installed. Triton needs no
# extension, so a failed build does not keep it from its tests.
cp -r ops_dcnv3/*.py ops_dcnv3/benchmark "$work/lib/ops_dcnv3/"
cp -r internimage_mm "$work/lib/"
cp -r tests "$work/tests"
export PYTHONPATH="$work/lib:$work/tests/ops$theirs"
# From a folder without an ops_dcnv3 of its own, which Python would import instead.
cd "$work" || exit 2
# Triton's interpreter proves nothing about a GPU.
unset TRITON_INTERPRET

step 60 'Backends' "$python" -c \
  "from ops_dcnv3 import explain_backend; print(explain_backend('$device'))"

# One process for each file, because after a fault in a kernel no other runs in the same process.
tests() {
  local limit=$1 file=$2 cases=$3
  [ $device = cuda ] || cases="${cases/cuda/cpu} and (1x1 or wrong_output or reasons)"
  step "$limit" "Tests, $file, $3" "$python" -m pytest -q -p no:cacheprovider \
    --import-mode=importlib -o pythonpath="tests tests/ops" -k "$cases" "tests/ops/$file"
}
benchmark() {
  local dtype=$1 size=()
  shift
  [ $device = cuda ] || size=(--shapes 1,8,10,2,16 --seconds 0)
  highlights="$rows.* over .*" step 60 "Benchmark, $dtype $*" \
    "$python" -m ops_dcnv3.benchmark --device $device --dtype "$dtype" "${size[@]}" "$@"
}

tests 90 test_cuda.py cuda
tests 120 test_values.py cuda
# The first shape, without the reference, besides the means.
rows='^copy floor.*|^\(1, 200, 320, [^)]*\) +[^r ].*|'
benchmark bfloat16 "${probabilities[@]}"
rows=''
tests 90 test_operator.py cuda
tests 120 test_triton.py triton
step 120 'Training, InternImage-T' "$python" tests/gpu_training.py --device $device \
  --steps $([ $device = cuda ] && echo 50 || echo 1)
benchmark bfloat16 --logits "${logits[@]}"
tests 120 test_values.py triton
tests 60 test_operator.py triton
for dtype in float16 float32; do
  benchmark $dtype "${probabilities[@]}"
  benchmark $dtype --logits "${logits[@]}"
done

if "$python" -c "import mmdet, mmseg
from mmcv.ops import get_compiling_cuda_version as cuda
assert '$device' == 'cpu' or cuda() != 'not available'" 2>/dev/null; then
  images=$([ $device = cuda ] && echo 400 || echo 8) # in batches of 8
  step 40 'Data' "$python" "$here/tools/make_mini_dataset.py" --out data --num-train "$images" \
    --num-val 4
  highlights=' loss: .*' step 60 'Training, Mask R-CNN' "$python" "$here/tools/train.py" \
    "$here/configs/quickstart/mask-rcnn_internimage-nano_mini-coco.py" --amp --work-dir mask-rcnn \
    --cfg-options train_cfg.max_epochs=1 train_cfg.val_interval=2
  highlights=' loss: .*' step 60 'Training, UPerNet' "$python" "$here/tools/train.py" \
    "$here/configs/quickstart/upernet_internimage-nano_mini-ade20k.py" --amp --work-dir upernet \
    --cfg-options train_cfg.max_iters=$((images / 8)) train_cfg.val_interval=$images
else
  summary+=('NOT RUN Mask R-CNN and UPerNet (no mmcv with CUDA operators, mmdet and mmseg)')
fi
exit "$status"
