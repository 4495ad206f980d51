#!/bin/sh
# The Jetson's build and its package, on any machine: tests/cross/run.sh PROGRAM LIBRARY PACKAGE (`make test-cross`).
#
# A root folder is made whose dpkg knows the packages of Ubuntu 22.04 (JetPack 6.2) and which holds nothing but the C library of
# the cross tools. The package is installed there; what it installed is used as a newcomer would, under qemu-user; then it is
# removed.
set -eu
export LC_ALL=C

root=$(cd "$(dirname "$0")/../.." && pwd)
[ $# -eq 3 ] || {
    echo "usage: run.sh PROGRAM LIBRARY PACKAGE" >&2
    exit 2
}
program=$1 library=$2 package=$3
sysroot=/usr/aarch64-linux-gnu
image=calibration/images/0024.png
question="describe the scene"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"

fail() {
    echo "cross: failed: $*" >&2
    exit 1
}
ok() { echo "cross: ok: $*"; }

# Golden ids are PyTorch's; the tests on x86-64 compare the answers there with the same list.
same_ids() { # JSON
    python3 - "$1" "$image" "$question" <<'END'
import json, sys
answer, image, question = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
items = [json.loads(line) for line in open("calibration/items.jsonl")]
item = next(i for i in items if image.endswith(i["image"]) and i["prompt"] == question)
sys.exit(f"{answer['token_ids']} is not {item['token_ids']}" if answer["token_ids"] != item["token_ids"] else 0)
END
}

tools/abi.sh "$program" "$library" || fail "symbols or libraries that JetPack 6.2 lacks"
echo 'int arc4random(void); int main(void) { return arc4random() == 7; }' >"$work/new.c"
if aarch64-linux-gnu-gcc "$work/new.c" -o "$work/new" 2>/dev/null; then # glibc 2.36 and newer have it
    tools/abi.sh "$work/new" >/dev/null 2>&1 && fail "abi.sh takes arc4random of glibc 2.36"
fi
ok "system libraries are old enough"

# The clean root.
target=$work/root
mkdir -p "$target/var/lib/dpkg/info" "$target/var/lib/dpkg/updates" "$target/usr/lib"
ln -s usr/lib "$target/lib"
# Where a loader looks first: it must not find libraries of the machine around it (tools/qemu.sh says why).
cp -R "$sysroot/lib" "$target/usr/lib/aarch64-linux-gnu"
ln -s aarch64-linux-gnu/ld-linux-aarch64.so.1 "$target/usr/lib/ld-linux-aarch64.so.1"
printf '%s\n' "$(dpkg --print-architecture)" arm64 >"$target/var/lib/dpkg/arch"
while read -r name version; do
    printf 'Package: %s\nStatus: install ok installed\nArchitecture: arm64\nMulti-Arch: same\nMaintainer: x\nDescription: x\nVersion: %s\n\n' \
        "$name" "$version"
    : >"$target/var/lib/dpkg/info/$name:arm64.list"
done >"$target/var/lib/dpkg/status" <<'END'
libc6 2.35-0ubuntu3
libgcc-s1 12-20220319-1ubuntu1
libstdc++6 12-20220319-1ubuntu1
END
install="dpkg --root=$target --force-not-root --log=/dev/null"
$install --install "$package" >"$work/log" 2>&1 || fail "dpkg: $(cat "$work/log")"
for file in bin/trtvlm lib/libtrtvlm.a include/trtvlm.h include/trtvlm.hpp lib/pkgconfig/trtvlm.pc \
    lib/cmake/trtvlm/trtvlmConfig.cmake share/doc/trtvlm/copyright share/doc/trtvlm/third-party-licences.gz; do
    [ -s "$target/usr/$file" ] || fail "the package has no /usr/$file"
done
ok "the package installs where libc6 is 2.35"

run() { qemu-aarch64-static -L "$target" "$@"; }
doctor=$(run "$target/usr/bin/trtvlm" doctor)
echo "$doctor" | grep -q '(aarch64)' || fail "doctor: $doctor"
echo "$doctor" | grep -q 'TensorRT' || fail "doctor: $doctor"
answer=$(run "$target/usr/bin/trtvlm" run onnx/uav-tiny --image "$image" --prompt "$question" --json)
same_ids "$answer" || fail "the answer's ids"
ok "the program answers with the ids of x86-64"

# As a C programmer on the board does it.
export PKG_CONFIG_SYSROOT_DIR="$target" PKG_CONFIG_LIBDIR="$target/usr/lib/pkgconfig"
export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1
# shellcheck disable=SC2046 # words
aarch64-linux-gnu-gcc -std=c99 -Wall -Wextra -Wpedantic -Werror -o "$work/ask" "$target/usr/share/doc/trtvlm/examples/c/ask.c" \
    $(pkg-config --cflags --libs trtvlm)
text=$(run "$work/ask" onnx/uav-tiny "$image" "$question")
[ "$(echo "$text" | head -n1)" = "1 white car and 1 blue boat on grass" ] || fail "the C example: $text"
ok "the C example is linked and answers"

cmake -S "$target/usr/share/doc/trtvlm/examples/flight" -B "$work/flight" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_PREFIX_PATH="$target/usr" \
    >"$work/log" 2>&1 && cmake --build "$work/flight" >>"$work/log" 2>&1 || fail "cmake: $(cat "$work/log")"
lines=$(run "$work/flight/flight" onnx/uav-tiny calibration/images examples/flight/mission.txt 1000 600000 2 2>"$work/log" | wc -l)
[ "$lines" = 2 ] || fail "the flight example: $lines lines, $(cat "$work/log")"
ok "the flight example is built with CMake and flies"

$install --purge trtvlm >"$work/log" 2>&1 || fail "dpkg: $(cat "$work/log")"
left=$(find "$target" -name '*trtvlm*')
[ -z "$left" ] || fail "removing the package leaves $left"
ok "the package leaves nothing behind"
