# Shared by prepare, first and run: steps with a limit in time, and the package where Python finds it.
# Source it: the folder becomes the root of the repository, and the folder `work` lives until the end.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PATH="$PATH:/usr/local/cuda/bin:/usr/local/nvidia/bin"
site=$work/site
build_options=(-C cmake.define.BNEXT_CUDA=ON -C cmake.define.BNEXT_CUDA_LINEINFO=ON)
failed=0
summary=()
dry=()      # or --dry: the emulated kernels and the host's clock in place of a GPU
patience=1  # a factor for all limits: in a dry run a busy machine is no reason to fail

# Options and FOLDER; sets `dry`, `total` (seconds) and `out`.
command_line() {  # seconds by default, arguments ...
  local usage="usage: ${0#./} [--dry] [--seconds N] FOLDER"
  total=$1
  shift
  while (($# > 1)); do
    case $1 in
      --dry) dry=(--dry) patience=10 ;;
      --seconds) total=$2; shift ;;
      *) break ;;
    esac
    shift
  done
  if (($# != 1)) || [[ $1 = -* || ! $total =~ ^[0-9]+$ ]]; then
    echo "$usage" >&2
    exit 2
  fi
  [[ $1 = /* ]] || set -- "$called_from/$1"
  mkdir -p "$1" || exit 2
  out=$(cd "$1" && pwd)
  : >"$out/log.txt"
  total=$((total * patience))
}
called_from=$OLDPWD

left() { echo $((total - SECONDS)); }

say() { echo "$@" | tee -a "$out/log.txt"; }

# Runs a command for at most that long, its output in the log as it comes. SIGINT ends it, so that
# Python can still say what it has; its status is the status of the step.
stage() {  # name, seconds at most, command ...
  local name=$1 limit=$2 begin=$SECONDS status=0 verdict=passed
  shift 2
  limit=$((limit * patience))
  ((limit < $(left))) || limit=$(left)
  say "=== $name (at $SECONDS s, $limit s at most)"
  if ((limit < 5)); then
    verdict="not run: no time was left" status=1
    : >"$work/$name.log"
  else
    # A shell that was started in the background ignores SIGINT, and so would its commands.
    timeout --signal=INT --kill-after=15 "$limit" env --default-signal=INT "$@" 2>&1 \
      | tee "$work/$name.log" >>"$out/log.txt"
    status=${PIPESTATUS[0]}
    if ((status == 124 || status == 137)); then
      verdict="stopped after $limit s"
    elif ((status)); then
      verdict="FAILED with status $status"
    fi
  fi
  if ((status)); then
    failed=1
    tail -n 30 "$work/$name.log"
  fi
  summary+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - begin)) "$verdict")")
  return "$status"
}

environment() {
  date -u
  timeout 20 nvidia-smi
  nvcc --version | tail -n 2
  python3 --version
  echo "$(nproc) processors, $(g++ --version | head -n 1)"
  command -v python3 nvcc ncu compute-sanitizer cmake ninja
  python3 -c 'import os, sysconfig
folder = sysconfig.get_path("include")
print(folder, "has" if os.path.exists(folder + "/Python.h") else "lacks", "Python.h")'
  python3 -m pip list 2>/dev/null | grep -iE \
    '^(torch|cupy|numpy|pybind11|scikit.build|cmake|ninja|pytest|hypothesis|ml.dtypes|array|triton|nvidia)'
  git describe --always --dirty
  ls -l .prebuilt
}

# --- the package ----------------------------------------------------------------------------------

# A fingerprint of what is compiled: a wheel of other sources must not be measured.
sources() {
  find csrc cmake CMakeLists.txt pyproject.toml -type f -print0 \
    | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16
}

# Puts the prebuilt wheel into `site`, if there is one, compiled from these sources; its Python files
# are replaced by the repository's files.
unpack() {  # python
  local wheels=(.prebuilt/bnext-*.whl)
  [ -e "${wheels[0]}" ] || { echo "there is no wheel in .prebuilt/"; return 1; }
  [ "$(sources)" = "$(cat .prebuilt/sources)" ] || { echo "the wheel is of other sources"; return 1; }
  "$1" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "${wheels[@]}" \
    || return
  (cd python && find bnext -type f ! -name '*.so' ! -name '*.pyc' -exec cp --parents {} "$site" \;)
}

# The architecture of the first GPU as CMake names it.
architecture() {
  local found
  found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
  [[ $found =~ ^[0-9]+$ ]] || found=90
  echo "$found-real"
}

no_gpu=3  # the status of `usable` where another build would not help
usable="import sys, bnext
bnext.show_config()
bnext.cuda._load()
print(bnext.cuda.reason())
sys.exit(0 if bnext.cuda.is_available() else 1 if bnext.cuda.device_count() else $no_gpu)"

# Lets Python find bnext with kernels for this machine: the prebuilt wheel, or else a build for the one
# architecture. A dry run takes what Python finds already.
provide_package() {
  local wheel tools=()
  ((${#dry[@]} == 0)) || return 0
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
  if unpack python3 >"$work/unpack.log" 2>&1; then
    stage load 60 python3 -c "$usable"
    case $? in
      0) return 0 ;;
      "$no_gpu") return 1 ;;
    esac
  else
    say "no wheel is used: $(tail -n 1 "$work/unpack.log")"
  fi
  rm -rf "$site"
  for wheel in .prebuilt/*.whl; do
    [[ $wheel = */bnext-* || ! -e $wheel ]] || tools+=("$wheel")
  done
  ((${#tools[@]} == 0)) || python3 -m pip install --quiet --no-index --no-deps --no-compile \
    --target "$work/tools" "${tools[@]}" >>"$out/log.txt" 2>&1
  stage build 150 env PYTHONPATH="$work/tools:$PYTHONPATH" python3 -m pip install -v \
    --no-build-isolation --no-deps --no-index --target "$site" -C build-dir="$work/build" \
    "${build_options[@]}" -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$(architecture)" . \
    && stage load 60 python3 -c "$usable"
}
