#!/bin/sh
# Install the C library: install.sh LIBRARY PREFIX [LIBS]
#
# LIBRARY is a libtrtvlm.a, LIBS the system libraries that programs link behind it. DESTDIR is put before PREFIX where files
# go, and not where they are looked for, as packagers expect.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 2 ] || {
    echo "usage: install.sh LIBRARY PREFIX [LIBS]" >&2
    exit 2
}
library=$1
prefix=$2
libs=${3:-"-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc"}
to=${DESTDIR:-}$prefix
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n1)

put() { # FILE FOLDER: copied whole, or not at all
    mkdir -p "$to/$2"
    cp "$1" "$to/$2/.new.$$"
    chmod 644 "$to/$2/.new.$$"
    mv -f "$to/$2/.new.$$" "$to/$2/${3:-$(basename "$1")}"
}
fill() { # TEMPLATE FOLDER NAME LIBS
    sed -e "s|@PREFIX@|$prefix|g" -e "s|@VERSION@|$version|g" -e "s|@LIBS@|$4|g" "$root/packaging/$1" >"$filled"
    put "$filled" "$2" "$3"
}
filled=$(mktemp)
trap 'rm -f "$filled"' EXIT

put "$library" lib libtrtvlm.a
put "$root/include/trtvlm.h" include
put "$root/include/trtvlm.hpp" include
fill trtvlm.pc.in lib/pkgconfig trtvlm.pc "$libs"
cmake_libs=$(echo "$libs" | sed 's/-l//g; s/  */;/g')
fill trtvlmConfig.cmake.in lib/cmake/trtvlm trtvlmConfig.cmake "$cmake_libs"
fill trtvlmConfigVersion.cmake.in lib/cmake/trtvlm trtvlmConfigVersion.cmake "$libs"
echo "installed libtrtvlm $version into $to"
