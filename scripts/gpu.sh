#!/usr/bin/env bash
# Checks, measures and trains on a machine with one GPU, in ten minutes.
#
#   scripts/gpu.sh --pack DATA  before, with a network: puts the wheels that the
#                               machine lacks and DATA, a folder in RAF-DB's
#                               layout, into carry/
#   scripts/gpu.sh OUT          there: writes at most 8 files to OUT
#
# Each part has a time limit and writes as it goes. Run again on the same
# machine, the table resumes. Set PARTS="table" to leave the others out.
# GPU_REHEARSAL=1 runs everything on a CPU, with tiny numbers.
set -u
where=$(realpath -m "${2:-${1:?usage: scripts/gpu.sh OUT | --pack DATA}}")
cd "$(dirname "$0")/.." || exit
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
work=runs/gpu
mkdir -p "$work"

if [ "${1:-}" = --pack ]; then
  "$PYTHON" -m pip download -q --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    -d carry/wheels ml-collections absl-py clu lightly kornia kornia-rs || exit
  PYTHONPATH=$PWD exec "$PYTHON" scripts/benchmark/gpu.py pack "$where"
fi

out=$where
mkdir -p "$out"
exec > >(tee -a "$out/gpu.log") 2>&1
if compgen -G "carry/wheels/*.whl" >/dev/null; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade \
    --target "$work/site" carry/wheels/*.whl
fi
export PYTHONPATH=$PWD:$PWD/$work/site JAX_COMPILATION_CACHE_DIR=$PWD/$work/programs
export XLA_PYTHON_CLIENT_PREALLOCATE=false
peers=${PEERS:-$PYTHON}
parts=${PARTS:-check benchmark table}
deadline=${GPU_SECONDS:-570}
limits=(120 130 50)
small=()
if [ -n "${GPU_REHEARSAL:-}" ]; then
  export JAX_PLATFORMS=cpu
  limits=(150 120 60)
  small=(--quick --device=cpu)
fi

# limited SECONDS COMMAND...: runs it, interrupted at the limit or the deadline.
limited() {
  local left=$((deadline - SECONDS)) limit=$1
  shift
  ((limit < left)) && left=$limit
  ((left < 10)) && echo "No time left for: $*" && return
  echo "== $SECONDS s: $* (at most $left s)"
  timeout --signal=INT --kill-after=10 "$left" "$@"
}

benchmark() {
  limited "$1" "$PYTHON" scripts/benchmark.py --peers="$peers" --rounds=3 --together \
    --out="$out/$2.json" "${small[@]}" "${@:3}"
}

for part in $parts; do
  case $part in
    check)
      limited "${limits[0]}" "$PYTHON" scripts/benchmark/gpu.py check "$out"
      ;;
    benchmark) # what matters most comes first
      benchmark "${limits[1]}" compiled --only=step,input,nt_xent \
        --cases='imagenet stem, 48 px, N=256' --cases='N=4096' \
        --cases='N=8192' --cases='48 px*: views and training step' \
        --cases='imagenet stem, 100 px, N=256' ${small:+--cases=*} \
        --systems='dbl_jax,PyTorch*,lightly,kornia'
      benchmark "${limits[2]}" eager --only=step \
        --cases='small stem, 48 px, N=256' --cases='imagenet*48 px, N=1024' \
        --cases='imagenet*' --cases='small*' --systems='dbl_jax,PyTorch'
      ;;
    table)
      "$PYTHON" scripts/benchmark/gpu.py table "$out" $((deadline - SECONDS))
      ;;
  esac
done
echo "== $SECONDS s: done"
