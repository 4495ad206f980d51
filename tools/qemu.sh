#!/bin/sh
# Run a program for aarch64 on another machine: qemu.sh PROGRAM ARGUMENT...
#
# All libraries have to be those of the cross tools. Left alone, their loader finds libc6:arm64's libc in /lib/aarch64-linux-gnu where that
# is installed (Debian's Rust for arm64 brings it), whose build has another layout of what the two share: then the first
# pthread_create never returns, which looks like a hang right after a program has counted the CPUs.
set -eu
sysroot=/usr/aarch64-linux-gnu
exec qemu-aarch64-static -L "$sysroot" -E LD_LIBRARY_PATH="$sysroot/lib" "$@"
