#!/bin/sh
# Install the system packages that a build needs, where they are missing (Debian, Ubuntu).
#
# deps.sh          install, with root or sudo; without either, print the command and fail
# deps.sh --check  only say what is missing
# deps.sh cross    also what `make cross` needs
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

foreign=
target=aarch64-unknown-linux-gnu
if [ "${1-}" = cross ]; then
    command -v aarch64-linux-gnu-g++ >/dev/null 2>&1 || want g++-aarch64-linux-gnu
    command -v qemu-aarch64-static >/dev/null 2>&1 || want qemu-user-static
    # Rust's standard library for aarch64 is rustup's where it has it, else Debian's, which needs Debian's compiler.
    if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] && ! [ -d "/usr/lib/rustlib/$target/lib" ]; then
        grep -qx 'ID=debian' /etc/os-release 2>/dev/null ||
            die "Rust's standard library for aarch64 is missing: rustup target add $target"
        foreign=arm64
        want rustc-web libstd-rust-web-dev libstd-rust-web-dev:arm64
    fi
fi

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
    die "    ${foreign:+dpkg --add-architecture $foreign && }apt-get update && apt-get install -y --no-install-recommends$missing"
fi
echo "deps: installing$missing" >&2
# shellcheck disable=SC2086 # a list of words
{
    [ -z "$foreign" ] || $sudo dpkg --add-architecture "$foreign"
    $sudo apt-get update -q
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
} >&2
