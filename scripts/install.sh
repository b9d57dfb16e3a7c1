#!/bin/sh
# Usage: [PYTHON=python3] [TORCH=requirement] scripts/install.sh VENV EXTRA
# Makes VENV, puts torch into it first, then moesaic with EXTRA under a constraint that nothing may change torch.
set -eu

venv=$1
extra=$2
name=install
. "$(dirname "$0")/environment.sh"

[ -x "$venv/bin/python" ] || make_environment
# shellcheck disable=SC2119 # no further options of pip
put_torch

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
printf 'torch==%s\n' "$(installed_torch)" >"$constraints"
pip install --quiet --constraint "$constraints" --editable ".[$extra]" || {
    say "moesaic could not be installed beside torch $(installed_torch); try: make TORCH=torch==$torch_version ..."
    exit 1
}
