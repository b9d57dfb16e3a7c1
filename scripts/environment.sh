# Sourced by install.sh and peers.sh: makes an environment, and puts torch into it before anything else can.
# Both use $venv (the environment's folder) and $name (of the script, for messages).
torch_version=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$name: $*" >&2; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# Of the installed package, not by importing it: that would take seconds.
installed_torch() {
    "$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null
}

make_environment() {
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        say "Python 3.11 or later is needed; name one with: make PYTHON=python3.12 ..."
        exit 1
    }
    "${PYTHON:-python3}" -m venv "$venv" || {
        rm -rf "$venv"
        say "this Python cannot make environments; on Debian and Ubuntu: apt-get install python3-venv"
        exit 1
    }
}

# put_torch [option of pip install]...
put_torch() {
    if found=$(installed_torch) && "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        say "keeping torch $found"
    elif [ -n "${TORCH:-}" ]; then
        pip install "$@" "$TORCH"
    elif pip install --quiet "$@" "torch==$torch_version+cpu" 2>/dev/null; then
        say "torch $torch_version+cpu from pip's configured sources"
    elif ! command -v nvidia-smi >/dev/null 2>&1 &&
        pip install "$@" "torch==$torch_version" --index-url "$cpu_index"; then
        say "no NVIDIA driver here: torch $torch_version from $cpu_index"
    else
        say "taking the default build of torch $torch_version; on Linux it brings gigabytes of CUDA packages"
        pip install "$@" "torch==$torch_version"
    fi
}
