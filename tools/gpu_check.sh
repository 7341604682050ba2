#!/usr/bin/env bash
# On a machine with a GPU: build the CUDA kernels, test them and the Triton ones, measure both, and
# write one report.
#
#   tools/gpu_check.sh [--out REPORT] [--official DIR] [--dcnv4 DIR]
#
# Needs python3 with a CUDA build of torch, a C++ compiler and nvcc of torch's CUDA release; nothing of
# OpenMMLab. --official names the folder `ops_dcnv3` of InternImage with `DCNv3` built in place, --dcnv4
# one that holds the built package `DCNv4`; the benchmark times these ops with ours. PYTHON chooses
# another interpreter. The exit status is that of the first step that failed; later steps run all the
# same.
set -uo pipefail

fail() {
  echo "gpu_check: $*" >&2
  exit 2
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
report=gpu_report.txt
theirs='' probabilities=() logits=()
while [ $# -gt 0 ]; do
  case $1 in
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

"$python" -c 'import torch; torch.cuda.init()' || fail "$python sees no GPU through torch"
"$python" -m pytest --version >/dev/null 2>&1 || fail 'pytest is missing: pip install pytest'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
: >"$report" || fail "cannot write $report"

step() {
  local title=$1 code
  shift
  printf '\n## %s\n\n$ %s\n' "$title" "$*" | tee -a "$report"
  "$@" 2>&1 | tee -a "$report"
  code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then
    echo "FAILED with status $code" | tee -a "$report"
    [ "$status" -ne 0 ] || status=$code
  fi
}

step 'Machine' nvidia-smi
step 'Versions' "$python" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda)'
step 'Build' env OPS_DCNV3_CUDA=1 "$python" setup.py build_ext --build-lib "$work/lib" \
  --build-temp "$work/temp"
# The package beside the extension just built, so that nothing has to be installed. Triton needs no
# extension, so a failed build does not keep it from its tests.
mkdir -p "$work/lib/ops_dcnv3"
cp -r ops_dcnv3/*.py ops_dcnv3/benchmark "$work/lib/ops_dcnv3/"
export PYTHONPATH="$work/lib"
cp -r tests "$work/tests"
# From a folder without an ops_dcnv3 of its own, which Python would import instead.
here=$PWD
cd "$work" || exit 2
case $report in /*) ;; *) report=$here/$report ;; esac
# Triton's interpreter proves nothing about a GPU.
unset TRITON_INTERPRET
step 'Backends' "$python" -c 'from ops_dcnv3 import explain_backend; print(explain_backend("cuda"))'
# One process for each file, because after a fault in a kernel no other runs in the same process. All
# of the first two are run, whose names match, and of the others the cases of the two backends.
for tests in test_cuda.py test_triton.py test_values.py test_operator.py; do
  step "Tests, $tests" "$python" -m pytest -q -rs -p no:cacheprovider --import-mode=importlib \
    -o pythonpath="tests tests/ops" -k 'cuda or triton' "tests/ops/$tests"
done
export PYTHONPATH="$work/lib:$work/tests/ops$theirs"
for dtype in bfloat16 float16 float32; do
  step "Benchmark, $dtype" "$python" -m ops_dcnv3.benchmark --device cuda --dtype "$dtype" \
    "${probabilities[@]}"
  step "Benchmark, $dtype, softmax in the op" "$python" -m ops_dcnv3.benchmark --device cuda \
    --dtype "$dtype" --logits "${logits[@]}"
done
cd "$here" || exit 2
echo
echo "report: $report"
exit "$status"
