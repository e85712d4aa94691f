#!/usr/bin/env bash
# Everything that wants a GPU, in one call of under 10 minutes: its tests, then all timings.
#
#   bash benchmarks/gpu.sh [--cpu] [--quick] [OUT]
#
# Needs this checkout and a python3 with torch 2.11 and transformers 5.17 or newer; no network, and
# nothing is installed. A step whose packages are absent is skipped with a word; one that fails or
# takes too long doesn't stop the others. OUT (else $OUT, else ./gpu-results) gets three files:
# results.json, the figures of all steps; log.txt, what they printed; steps.tsv, how each ended.
#
# --cpu runs on the CPU, --quick with tiny models: together they prove this script in minutes.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
device=cuda quick=""
while [ $# -gt 0 ]; do
  case "$1" in
    --cpu) device=cpu ;;
    --quick) quick=--quick ;;
    -*) echo "error: no such option: $1" >&2; exit 2 ;;
    *) OUT="$1" ;;
  esac
  shift
done
out="${OUT:-$PWD/gpu-results}"
mkdir -p "$out" || exit 2
out="$(cd "$out" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 COMPRESS_CACHE="$work/cache"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$([ "$device" = cpu ] && echo 1 || echo 8)}"
slow=$([ "$device" = cpu ] && echo 5 || echo 1) # a CPU that others use may take its time
budget="${BUDGET:-$((570 * slow))}" # seconds for all
: >"$out/log.txt"
printf 'step\tended\tseconds\n' >"$out/steps.tsv"

# step NAME SECONDS "PACKAGE…" COMMAND…: run it with that limit, or with what is left of the budget
step() {
  local name="$1" limit="$2" packages="$3" left ended began
  shift 3
  limit=$((limit * slow))
  left=$((budget - SECONDS))
  [ "$limit" -lt "$left" ] || limit="$left"
  began="$SECONDS"
  local missing=""
  for package in $packages; do
    "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$package') is None)" ||
      missing="$missing $package"
  done
  printf '\n== %s: %s\n' "$name" "$*" >>"$out/log.txt"
  if [ -n "$missing" ]; then
    ended="skipped: not installed:$missing"
  elif [ ! -e "$root/${script:-benchmarks}" ]; then
    ended="skipped: no $script in this checkout"
  elif [ -n "${script:-}" ] && ! grep -q '"--device"' "$root/$script"; then
    ended="skipped: $script takes no --device"
  elif [ "$limit" -lt 5 ]; then
    ended="skipped: no time left"
  else
    (cd "$root" && timeout -k 5 "$limit" "$@") >>"$out/log.txt" 2>&1
    case $? in
      0) ended=ok ;;
      124 | 137) ended="stopped after ${limit} s" ;;
      *) ended="failed with code $?" ;;
    esac
  fi
  printf '%s\t%s\t%s\n' "$name" "$ended" "$((SECONDS - began))" >>"$out/steps.tsv"
  printf '%-28s %4s s  %s\n' "$name" "$((SECONDS - began))" "$ended"
}

# timing NAME SECONDS "PACKAGE…" SCRIPT OPTION…: a benchmark that takes --device and --output
timing() {
  local name="$1" limit="$2" packages="$3" script="$4"
  shift 4
  step "$name" "$limit" "$packages" \
    "$python" "$script" --device "$device" $quick --output "$work/$name.json" "$@"
}

large=""
[ -n "$quick" ] || [ "$device" = cpu ] || large=yes

step machine 60 "torch transformers" "$python" - "$work/machine.json" "$device" <<'PY'
import importlib.metadata, importlib.util, json, platform, sys
import torch
names = ["torch", "transformers", "accelerate", "safetensors", "numpy", "scipy", "datasets",
         "lm_eval", "weightwatcher", "pytorch_optimizer", "pytest"]
have = {n: importlib.metadata.version(n) for n in names if importlib.util.find_spec(n)}
found = {"python": platform.python_version(), "packages": have,
         "absent": [n for n in names if n not in have], "cuda": torch.version.cuda}
if torch.cuda.is_available():
    found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(found)
json.dump(found, open(sys.argv[1], "w"))
sys.exit(sys.argv[2] == "cuda" and not torch.cuda.is_available())
PY
if [ "$device" = cuda ] && ! grep -q $'^machine\tok' "$out/steps.tsv"; then
  echo "error: torch sees no CUDA device; --cpu proves the script without one" >&2
  tail -5 "$out/log.txt" >&2
  exit 3
fi

step tests 240 "pytest tokenizers accelerate" \
  "$python" -m pytest -q -p no:cacheprovider -rsf --durations=10 -m gpu tests/gpu
timing prune-30m 60 "accelerate" benchmarks/prune/floor.py --rounds 3
timing spectra 60 "threadpoolctl scipy" benchmarks/spectra/on_device.py ${large:+--large}
timing optimizer-steps 120 "" benchmarks/training/step_time.py --rounds 15
timing semi-structured 60 "accelerate" benchmarks/prune/semi_structured.py
if [ -n "$large" ]; then
  timing prune-1b 90 "accelerate" benchmarks/prune/floor.py --size 1b --dtype bfloat16 --rounds 2
fi
timing training-overhead 60 "accelerate" benchmarks/training/overhead.py --rounds 5
step eval-speed 60 "click rich" sh -c \
  "'$python' -m compress eval calib_data/tiny-llama --speed --device $device --json > '$work/eval-speed.json'"

"$python" - "$work" "$out" <<'PY'
import csv, json, pathlib, sys
work, out = map(pathlib.Path, sys.argv[1:])
steps = list(csv.DictReader((out / "steps.tsv").open(), delimiter="\t"))
found = {p.stem: json.loads(p.read_text()) for p in sorted(work.glob("*.json")) if p.stat().st_size}
(out / "results.json").write_text(json.dumps({"steps": steps, **found}, indent=1) + "\n")
PY
echo "done in $SECONDS s: $out/results.json, log.txt, steps.tsv"
! grep -q $'\tfailed\|\tstopped' "$out/steps.tsv"
