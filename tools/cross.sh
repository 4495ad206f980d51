#!/bin/sh
# Run cargo for the Jetson's processor: cross.sh COMMAND...
#
# Sets what cargo, cc and bindgen need to build for aarch64 on another machine, and to run the result under qemu. rustup's
# compiler is taken where it has the target, else Debian's (`tools/deps.sh cross` installs it). Outputs go to
# target/aarch64-unknown-linux-gnu.
set -eu

die() {
    echo "cross: $*" >&2
    exit 1
}
root=$(cd "$(dirname "$0")/.." && pwd)
target=aarch64-unknown-linux-gnu
[ $# -gt 0 ] || {
    echo "usage: cross.sh COMMAND..." >&2
    exit 2
}
[ "$(uname -m)" != aarch64 ] || die "this machine is an aarch64 itself: use 'make build' and 'make lib'"
command -v aarch64-linux-gnu-g++ >/dev/null 2>&1 || die "aarch64-linux-gnu-g++ is missing: run 'tools/deps.sh cross'"

if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
    [ -d "/usr/lib/rustlib/$target/lib" ] ||
        die "Rust's standard library for aarch64 is missing: 'rustup target add $target', or 'tools/deps.sh cross'"
    export RUSTC=/usr/bin/rustc
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    have=$($RUSTC --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -n1)" = "$need" ] ||
        die "Debian's rustc is $have, Cargo.toml asks for $need: 'apt-get update && apt-get install rustc-web', or rustup"
fi
export CARGO_BUILD_TARGET=$target
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$root/tools/qemu.sh
exec "$@"
