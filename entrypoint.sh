#!/usr/bin/env bash
# birdtune's one door: `./entrypoint.sh [command] [settings]`, the same in and out of a container.
# Outside, the packages of requirements.txt are put into .venv the first time, which later starts
# reuse; inside, they are part of the image. `./entrypoint.sh test` runs the tests, `bench` the measurements,
# `extras NAME...` adds packages that not everybody needs.
set -euo pipefail

root=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
venv=$root/.venv
extras=(birdnet collect media mlflow onnx parquet ray smote)
peers=$root/.venv-bench  # what birdtune is measured beside; it sees the packages of .venv, too

say() { printf 'birdtune: %s\n' "$*" >&2; }
fail() { local code=$1; shift; say "$*"; exit "$code"; }    # the codes are those of birdtune/errors.py

find_python() {
  local name
  for name in python3.11 python3 python; do
    if command -v "$name" >/dev/null &&
      "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail 42 "Python 3.11 was not found on PATH, and the locked packages are made for it. On Debian 12:" \
    "apt install python3 python3-venv; elsewhere: uv python install 3.11, or use the image (README.md)."
}

# A stamp is the lock's digest, written after the last package: it holds only for a whole
# installation of this very lock, however an earlier one was stopped.
digest() { local line; line=$(sha256sum <"$1") && echo "${line%% *}"; }
home_of() { if [[ $1 == bench/* ]]; then echo "$peers"; else echo "$venv"; fi; }
stamp_of() { echo "$(home_of "$1")/${1##*/}.sha256"; }
stamped() {
  local stamp held=
  stamp=$(stamp_of "$1")
  [[ -x ${stamp%/*}/bin/python && -f $stamp ]] && read -r held <"$stamp" && [[ $held == "$(digest "$root/$1")" ]]
}

make_venv() {  # make_venv FOLDER
  local python machine venv=$1
  machine=$(uname -sm)
  [[ $machine == "Linux x86_64" ]] ||
    fail 42 "the locked packages are for Linux x86_64, this is $machine; use the image (README.md)."
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail 42 "$python cannot make a virtual environment; on Debian: apt install python3.11-venv"
  rm -rf "$venv"
  "$python" -m venv "$venv" || fail 75 "could not make $venv; is the disk full or read-only?"
}

install() {  # install LOCK: also when another start is at it, or was stopped half-way
  local lock=$1 home
  home=$(home_of "$lock")
  # The lock belongs to the open file, so that a pip which outlives its killed start still holds it.
  { exec 9>"$home.lock"; } 2>/dev/null || fail 42 "cannot write to $root, where .venv is to be made."
  flock --nonblock 9 || { say "waiting for another start that is installing packages"; flock 9; }
  if ! stamped "$lock"; then
    say "installing the packages of $lock into $home (once, a few minutes)"
    if [[ $lock == requirements.txt || $lock == bench/* ]]; then make_venv "$home"; fi
    if [[ $home == "$peers" ]]; then
      # By way of this file, packages that .venv has are seen, and not installed once more.
      echo "$venv/lib/python3.11/site-packages" >"$peers/lib/python3.11/site-packages/job.pth"
    fi
    "$home/bin/python" -m pip --quiet --disable-pip-version-check --no-input install \
      --no-deps --require-hashes --only-binary :all: --requirement "$root/$lock" ||
      fail 75 "the packages could not be installed (pip's reason stands above); is there a network," \
        "and 4 GB of disk? The next start tries again."
    digest "$root/$lock" >"$(stamp_of "$lock")"
  fi
  exec 9>&-
}

add_extras() {  # add_extras NAME... [--accept-licence ID]
  local name id terms accepted='' names=()
  while (($#)); do
    case $1 in
      --accept-licence=*) accepted=${1#*=} ;;
      --accept-licence) accepted=${2:-}; shift $(($# > 1)) ;;
      *)
        [[ " ${extras[*]} " == *" $1 "* ]] || fail 2 "there is no extra '$1'. There is: ${extras[*]}."
        names+=("$1")
        ;;
    esac
    shift
  done
  ((${#names[@]})) || fail 2 "name what to add: ./entrypoint.sh extras NAME. There is: ${extras[*]} (docs/backbones.md)."
  [[ -z ${BIRDTUNE_IN_IMAGE:-} ]] || fail 2 "an image is not added to; build it with them: docker build" \
    "--build-arg EXTRAS='${names[*]}'${accepted:+ --build-arg ACCEPT_LICENCE=$accepted} ..."
  for name in "${names[@]}"; do  # before anything is installed
    terms=$root/requirements-$name.licence
    if [[ -f $terms ]] && ! stamped "requirements-$name.txt"; then
      cat "$terms" >&2
      read -r id <"$terms"
      [[ $accepted == "$id" ]] || fail 42 "$name is not installed: its licence was not accepted. If you may use it" \
        "under these terms: ./entrypoint.sh extras ${names[*]} --accept-licence $id"
    fi
  done
  stamped requirements.txt || install requirements.txt
  for name in "${names[@]}"; do
    stamped "requirements-$name.txt" || install "requirements-$name.txt"
    say "$name is installed"
  done
}

unset PYTHONHOME  # it would point a virtual environment at another Python
export PYTHONPATH=$root/code TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

if [[ ${1:-} == extras ]]; then
  add_extras "${@:2}"
  exit
fi
if [[ -n ${BIRDTUNE_IN_IMAGE:-} ]]; then
  [[ ${1:-} != test && ${1:-} != bench ]] ||
    fail 2 "the image holds no tests and no bench; run ./entrypoint.sh $1 in the project's folder."
  exec python -m birdtune "$@"
fi

stamped requirements.txt || install requirements.txt
if [[ ${1:-} == test ]]; then
  stamped requirements-dev.txt || install requirements-dev.txt
  shift
  cd -- "$root"
  # A file's tests share what it makes once, so that a file stays together. A later --numprocesses of the caller counts.
  exec "$venv/bin/python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
fi
if [[ ${1:-} == bench ]]; then
  shift
  python=$peers/bin/python
  stamped bench/requirements.txt || (install bench/requirements.txt) || {
    say "measuring birdtune alone, without its peers (torch's build for CPUs comes from an index of PyTorch's own)."
    python=$venv/bin/python
  }
  cd -- "$root"
  PYTHONPATH=$root:$PYTHONPATH exec "$python" -m bench "$@"
fi
exec "$venv/bin/python" -m birdtune "$@"
