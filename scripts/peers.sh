#!/bin/sh
# Usage: [PYTHON=python3] [TORCH=requirement] scripts/peers.sh VENV LOCK
# Makes VENV anew with exactly the packages of LOCK; torch comes first if LOCK has a line "# needs torch".
set -eu

venv=$1
lock=$2
name=peers
. "$(dirname "$0")/environment.sh"

rm -rf "$venv" # what an older list held would stay otherwise
mkdir -p "$(dirname "$venv")"
make_environment
if grep -q '^# needs torch' "$lock"; then
    put_torch --constraint "$lock"
fi
# The list is complete, so pip has nothing to resolve and cannot change torch.
pip install --quiet --no-deps --requirement "$lock"
say "$venv is ready"
