#!/usr/bin/env bash
# Takes fedkd to a machine that has PyTorch and no network.
#
#   scripts/airgap.sh pack OUT [options]     here: collect wheels, source and small data into parts of a limited size
#     --python 3.12          the Python there
#     --torch 2.11.0         PyTorch there; no wheel of it is packed, nor of what comes with it
#     --torchvision 0.26.0   likewise
#     --max-mib 60           the size of a part
#     --wheels FOLDER        take wheels from here, and nothing from the network
#     --locked FILE          pack these `name==version` lines and fedkd, instead of resolving what fedkd needs
#   scripts/airgap.sh install PARTS SITE     there: check the parts, and install into the new folder SITE what is missing
#
# Then, there: export PYTHONPATH=SITE FEDKD_DATA=SITE/data; python -m fedkd doctor
set -euo pipefail

HOME_OF_FEDKD=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
OURS=$(mktemp -d)
trap 'rm -rf "$OURS"' EXIT

fail() { echo "airgap.sh: $*" >&2; exit 2; }

usage() { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }

# The names of wheels that belong to PyTorch
OF_TORCH='^(torch|torchvision|triton|nvidia[-_].*|cuda[-_].*)$'

pack() {
  [ $# -ge 1 ] || usage
  local out=$1 python=3.12 torch=2.11.0 torchvision=0.26.0 mib=60 wheels='' locked=''
  shift
  while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "$1 needs a value"
    case $1 in
      --python) python=$2 ;; --torch) torch=$2 ;; --torchvision) torchvision=$2 ;; --max-mib) mib=$2 ;;
      --wheels) wheels=$2 ;; --locked) locked=$2 ;; *) fail "unknown option $1; valid: --python, --torch, --torchvision, --max-mib, --wheels, --locked" ;;
    esac
    shift 2
  done
  [[ $mib =~ ^[1-9][0-9]*$ ]] || fail "--max-mib $mib: give a number of MiB, 1 or more"
  [ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels $wheels: there is no such folder"
  [ -z "$locked" ] || [ -f "$locked" ] || fail "--locked $locked: there is no such file"
  [ ! -e "$out" ] || fail "$out exists already; give a new folder"
  mkdir -p "$OURS/all/wheels" "$OURS/all/data" "$out"

  "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$OURS/all/wheels" "$HOME_OF_FEDKD"
  git -C "$HOME_OF_FEDKD" archive --format=tar.gz --output="$OURS/all/source.tar.gz" HEAD
  small_data "$OURS/all/data"

  # pip does not widen platforms: each one that the machine can run is named
  local there=(--only-binary=:all: --python-version "$python" --implementation cp --abi "cp${python/./}")
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux2010 manylinux_2_5 manylinux1; do
    there+=(--platform "${tag}_x86_64")
  done
  there+=(--platform any)
  local from=()
  [ -z "$wheels" ] || from=(--no-index --find-links "$wheels")

  if [ -n "$locked" ]; then
    cp "$locked" "$OURS/locked.txt"
  else
    stand_ins "$OURS/stand-ins" "$torch" "$torchvision" > "$OURS/constraints.txt"
    "$PYTHON" -m pip install --quiet --dry-run --ignore-installed --report "$OURS/report.json" --target "$OURS/nowhere" \
      "${there[@]}" "${from[@]}" --find-links "$OURS/stand-ins" --constraint "$OURS/constraints.txt" \
      "$OURS"/all/wheels/fedkd-*.whl
    "$PYTHON" - "$OURS/report.json" "$OF_TORCH" > "$OURS/locked.txt" <<'PY'
import json, re, sys
for one in json.load(open(sys.argv[1], encoding="utf-8"))["install"]:
    about = one["metadata"]
    if about["name"] != "fedkd" and not re.match(sys.argv[2], about["name"].lower()):
        print(f"{about['name']}=={about['version']}")
PY
  fi
  "$PYTHON" -m pip download --quiet --no-deps "${there[@]}" "${from[@]}" --dest "$OURS/all/wheels" --requirement "$OURS/locked.txt"
  tar --create --gzip --directory "$OURS/all" . | split --bytes="${mib}m" - "$out/fedkd.part-"
  (cd "$out" && sha256sum fedkd.part-* > SHA256SUMS)
  echo "$(find "$OURS/all/wheels" -name '*.whl' | wc -l) wheels, $(find "$out" -name 'fedkd.part-*' | wc -l) parts in $out"
}

# Wheels in place of PyTorch's, so that what it needs need not be found; prints constraints that choose them
stand_ins() {
  mkdir "$1"
  "$PYTHON" - "$@" <<'PY'
import sys, zipfile
folder, *versions = sys.argv[1:]
for name, version in zip(("torch", "torchvision"), versions):
    version += "+there"
    print(f"{name}=={version}")
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(f"{folder}/{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
PY
}

# MNIST whole and a fifth of CIFAR-10, where they are at hand
small_data() {
  FEDKD_DATA=${FEDKD_DATA:-data} "$PYTHON" - "$1" <<'PY'
import os, sys
from pathlib import Path
import numpy as np
root = Path(os.environ["FEDKD_DATA"])
for name, most in (("mnist", None), ("cifar10", 10_000)):
    if (root / f"{name}.npz").is_file():
        with np.load(root / f"{name}.npz") as arrays:
            np.savez_compressed(Path(sys.argv[1]) / f"{name}.npz", **{key: arrays[key][:most] for key in arrays.files})
PY
}

install() {
  [ $# -eq 2 ] || usage
  local parts=$1 site=$2
  [ -f "$parts/SHA256SUMS" ] || fail "$parts has no SHA256SUMS; give the folder that pack has made"
  [ ! -e "$site" ] || fail "$site exists already; give a new folder"
  (cd "$parts" && sha256sum --check --quiet SHA256SUMS) || fail "a part is damaged or missing: copy it again"
  mkdir "$OURS/all"
  (cd "$parts" && sed 's/^[^ ]*  //' SHA256SUMS | xargs cat) | tar --extract --gzip --directory "$OURS/all"
  local before after
  before=$("$PYTHON" -c 'import torch; print(torch.__version__, torch.__file__)') || fail "$PYTHON has no PyTorch"
  "$PYTHON" - "$OURS/all/wheels" "$OF_TORCH" > "$OURS/missing.txt" <<'PY'
"""Print the wheels that the machine lacks, or has in a version that another wheel does not accept."""
import re, sys, zipfile
from importlib.metadata import PackageNotFoundError, version
from email.parser import Parser
from pathlib import Path
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
wheels, wanted = {}, {}
for path in sorted(Path(sys.argv[1]).glob("*.whl")):
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        about = Parser().parsestr(archive.read(name).decode())
    wheels[canonicalize_name(about["Name"])] = path
    for text in about.get_all("Requires-Dist") or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            wanted.setdefault(canonicalize_name(need.name), []).append(need.specifier)
for name, path in wheels.items():
    if re.match(sys.argv[2], name):
        continue
    try:
        there = version(name)
    except PackageNotFoundError:
        there = None
    if there is None or name == "fedkd" or not all(s.contains(there, prereleases=True) for s in wanted.get(name, [])):
        print(path)
PY
  xargs --no-run-if-empty "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" < "$OURS/missing.txt"
  cp -r "$OURS/all/data" "$site/data"
  cp "$OURS/all/source.tar.gz" "$site/"
  after=$(PYTHONPATH=$site "$PYTHON" -c 'import torch; print(torch.__version__, torch.__file__)')
  [ "$before" = "$after" ] || fail "PyTorch was $before, and is $after: remove $site"
  echo "$(wc -l < "$OURS/missing.txt") wheels in $site; PyTorch stays $before"
  echo "export PYTHONPATH=$site FEDKD_DATA=$site/data"
}

case ${1:-} in
  pack) shift; pack "$@" ;;
  install) shift; install "$@" ;;
  *) usage ;;
esac
