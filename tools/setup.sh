#!/usr/bin/env bash
# Makes .venv in the checkout hold what `make demo` (all) or `make test` (dev) needs; does nothing where it already does.
# usage: tools/setup.sh all|dev
# It says in one sentence what is missing, since it may run on a machine that has nothing yet.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1
needed_gb=8 # torch's wheel for Linux brings its CUDA libraries

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

find_python() {
    local name
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            command -v "$name"
            return
        fi
    done
    command -v python3 >/dev/null || fail "no python3 on PATH; install Python 3.11 or newer (Debian: apt install python3 python3-venv)."
    fail "$(python3 -V) is too old; TeraGPT needs Python 3.11 or newer (name one with PYTHON=... make)."
}

make_venv() {
    local free_gb
    free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free_gb" -ge "$needed_gb" ] || fail "only $free_gb GB are free in $PWD; the libraries need $needed_gb."
    echo "setup: making .venv with $("$python" -V)"
    rm -rf .venv
    "$python" -m venv --without-pip .venv || fail "$python could not make .venv (is the disk full?)."
    .venv/bin/python -m ensurepip --default-pip >/dev/null 2>&1 ||
        { rm -rf .venv; fail "$python has no ensurepip; install python3-venv (Debian: apt install python3-venv)."; }
}

install() {
    local pip=(.venv/bin/python -m pip --disable-pip-version-check) pin
    pin=$(grep '^uv==' constraints.txt)
    echo "setup: installing TeraGPT with [$extra] from PyPI (some GB the first time)"
    # uv is many times faster; pip reads the machine's pip.conf, which uv does not.
    said=$(mktemp)
    "${pip[@]}" install --quiet --retries 2 "$pin" 2>"$said" || { grep -q 'connection broken by' "$said" && unreachable; }
    rm -f "$said"
    { .venv/bin/uv pip install --python .venv/bin/python -c constraints.txt -e ".[$extra]"; } ||
        { ! disk_full && "${pip[@]}" install -c constraints.txt -e ".[$extra]"; } || explain "$pin"
}

disk_full() {
    [ "$(df -Pk . | awk 'NR == 2 { print $4 }')" -lt 524288 ]
}

unreachable() {
    fail "the package index could not be reached; check the network (or pip's index and proxy settings) and run make again."
}

explain() {
    disk_full && fail "the disk is full: $(df -Ph . | awk 'NR == 2 { print $4 " left on " $6 }')."
    .venv/bin/python -m pip download --quiet --no-deps --no-cache-dir --dest "$(mktemp -d)" "$1" >/dev/null 2>&1 ||
        unreachable
    fail "installing failed; the installer's last lines above say why."
}

python=$(find_python)
stamp=.venv/installed-$extra
state=$({ echo "$PWD $extra"; cat pyproject.toml constraints.txt; } | cksum)

if [ -e .venv ] && ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    rm -rf .venv # its Python went away, or the checkout moved
fi
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    [ -x .venv/bin/python ] || make_venv
    install
    echo "$state" >"$stamp"
    [ "$extra" != dev ] || { echo "$PWD all"; cat pyproject.toml constraints.txt; } | cksum >.venv/installed-all
fi
