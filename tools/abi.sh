#!/bin/sh
# Does what was built for the Jetson run on the oldest system that it is for? abi.sh FILE...
#
# FILE is a program, or a static library, of which everything is linked. JetPack 6.2 is Ubuntu 22.04: glibc 2.35, and the
# libstdc++ of GCC 12. Symbols of newer versions, and libraries that a plain system lacks, are named; then the exit status is 1.
set -eu
export LC_ALL=C

prefix=${CROSS_PREFIX-aarch64-linux-gnu-}
libraries="ld-linux-aarch64.so.1 libc.so.6 libdl.so.2 libgcc_s.so.1 libm.so.6 libpthread.so.0 librt.so.1 libstdc++.so.6 libutil.so.1"
limits="GLIBC_2.35 GLIBCXX_3.4.30 CXXABI_1.3.13 GCC_12.0.0"
[ $# -gt 0 ] || {
    echo "usage: abi.sh FILE..." >&2
    exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

for file; do
    linked=$file
    case $file in
    *.a)
        linked=$work/all.so
        "${prefix}g++" -shared -o "$linked" -Wl,--whole-archive "$file" -Wl,--no-whole-archive -Wl,-z,defs \
            -lutil -lrt -lpthread -lm -ldl
        ;;
    esac
    "${prefix}objdump" -p "$linked" | sed -n 's/^ *NEEDED *//p' >"$work/needed"
    "${prefix}objdump" -T "$linked" |
        awk '/\*UND\*/ { version = $(NF - 1); gsub(/[()]/, "", version); if (version ~ /_[0-9]/) print version, $NF }' >"$work/symbols"
    found=
    for limit in $limits; do
        family=${limit%%_*}
        highest=$(sed -n "s/^\(${family}_[0-9.]*\) .*/\1/p" "$work/symbols" | sort -uV | tail -n1)
        [ -n "$highest" ] || continue
        found="$found $highest"
        [ "$(printf '%s\n%s\n' "$limit" "$highest" | sort -V | tail -n1)" = "$limit" ] && continue
        failed=1
        echo "abi: $file needs $highest, at most $limit is there:" >&2
        grep "^${family}_" "$work/symbols" | while read -r version symbol; do
            [ "$(printf '%s\n%s\n' "$limit" "$version" | sort -V | tail -n1)" = "$limit" ] || echo "  $symbol ($version)" >&2
        done
    done
    for library in $(cat "$work/needed"); do
        case " $libraries " in
        *" $library "*) ;;
        *)
            failed=1
            echo "abi: $file needs $library, which a plain system lacks" >&2
            ;;
        esac
    done
    [ -n "$found" ] || {
        failed=1
        echo "abi: $file: no symbol of a system library was found, so nothing was checked" >&2
    }
    echo "abi: $file:$found"
done
exit $failed
