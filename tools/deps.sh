#!/bin/sh
# Install the system packages that a build needs, where they are missing (Debian, Ubuntu).
#
# deps.sh          install, with root or sudo; without either, print the command and fail
# deps.sh --check  only say what is missing
set -eu

die() {
    echo "deps: $*" >&2
    exit 1
}
root=$(cd "$(dirname "$0")/.." && pwd)

# cargo is not ours to install, but its version is ours to check.
command -v cargo >/dev/null 2>&1 || die "cargo is missing: install Rust (https://rustup.rs), then try again"
need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
have=$(rustc --version | cut -d' ' -f2 | cut -d- -f1)
[ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -n1)" = "$need" ] ||
    die "rustc $have is older than $need, which Cargo.toml asks for: update Rust ('rustup update stable')"

missing=
want() { missing="$missing $*"; }
command -v cc >/dev/null 2>&1 && command -v c++ >/dev/null 2>&1 || want g++ # linker, C++ shim
command -v cmake >/dev/null 2>&1 || want cmake                            # tests of the C++ example
command -v pkg-config >/dev/null 2>&1 || want pkg-config
if ! [ -f "${TRTVLM_SDK:-$root/.sdk}/stamp" ]; then                        # only `make sdk` uses pip
    python3 -m pip --version >/dev/null 2>&1 || want python3 python3-pip
fi
[ -e /etc/ssl/certs/ca-certificates.crt ] || want ca-certificates

[ -n "$missing" ] || exit 0
if [ "${1-}" = --check ]; then
    echo "missing:$missing"
    exit 1
fi

command -v apt-get >/dev/null 2>&1 ||
    die "missing:$missing (Debian's names). Install them with your package manager, then try again"
if [ "$(id -u)" = 0 ]; then
    sudo=
elif command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    sudo=sudo
else
    echo "deps: missing:$missing. Neither root nor sudo here; have someone run" >&2
    die "    apt-get update && apt-get install -y --no-install-recommends$missing"
fi
echo "deps: installing$missing" >&2
# shellcheck disable=SC2086 # a list of words
{
    $sudo apt-get update -q
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
} >&2
