#!/bin/sh
# Usage: [PYTHON=python3] [TORCH=requirement] scripts/install.sh VENV EXTRA
# Makes VENV, puts torch into it first, then moesaic with EXTRA under a constraint that nothing may change torch.
set -eu

venv=$1
extra=$2
version=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "install: $*" >&2; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# Of the installed package, not by importing it: that would take seconds.
torch_version() {
    "$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null
}

if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        say "moesaic needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..."
        exit 1
    }
    "${PYTHON:-python3}" -m venv "$venv" || {
        rm -rf "$venv"
        say "this Python cannot make environments; on Debian and Ubuntu: apt-get install python3-venv"
        exit 1
    }
fi

if found=$(torch_version) && "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    say "keeping torch $found"
elif [ -n "${TORCH:-}" ]; then
    pip install "$TORCH"
elif pip install --quiet "torch==$version+cpu" 2>/dev/null; then
    say "torch $version+cpu from pip's configured sources"
elif ! command -v nvidia-smi >/dev/null 2>&1 && pip install "torch==$version" --index-url "$cpu_index"; then
    say "no NVIDIA driver here: torch $version from $cpu_index"
else
    say "taking the default build of torch $version; on Linux it brings gigabytes of CUDA packages"
    pip install "torch==$version"
fi

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
printf 'torch==%s\n' "$(torch_version)" >"$constraints"
pip install --quiet --constraint "$constraints" --editable ".[$extra]" || {
    say "moesaic could not be installed beside torch $(torch_version); another build: make TORCH=torch==$version ..."
    exit 1
}
