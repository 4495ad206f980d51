#!/bin/sh
# Make a Debian package for the Jetson: deb.sh PROGRAM LIBRARY FEATURES LIBS
#
# PROGRAM and LIBRARY are for aarch64, FEATURES those of cargo that they were built with, LIBS what programs link behind LIBRARY.
# The package goes to debian/ beside them and its path to stdout: program, library, headers, CMake and pkg-config files, examples,
# and the licences of everything that is inside. Plain dpkg-deb: the same inputs give the same bytes.
set -eu
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -eq 4 ] || {
    echo "usage: deb.sh PROGRAM LIBRARY FEATURES LIBS" >&2
    exit 2
}
program=$1 library=$2 features=$3 libs=$4
prefix=aarch64-linux-gnu-
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

out=$(dirname "$program")/debian
tree=$out/tree
rm -rf "$out"
mkdir -p "$tree/DEBIAN" "$tree/usr/bin"
doc=$tree/usr/share/doc/trtvlm
mkdir -p "$doc"

"${prefix}strip" --strip-unneeded -o "$tree/usr/bin/trtvlm" "$program"
chmod 755 "$tree/usr/bin/trtvlm"
"${prefix}strip" --strip-debug --enable-deterministic-archives -o "$out/libtrtvlm.a" "$library"
DESTDIR=$tree "$root/tools/install.sh" "$out/libtrtvlm.a" /usr "$libs" >&2
cp -R "$root/examples/c" "$root/examples/flight" "$out/"
mkdir -p "$doc/examples"
mv "$out/c" "$out/flight" "$doc/examples/"
gzip -9nc "$root/CHANGELOG.md" >"$doc/changelog.gz"
for shell in bash zsh fish; do
    case $shell in
    bash) file=bash-completion/completions/trtvlm ;;
    zsh) file=zsh/vendor-completions/_trtvlm ;;
    fish) file=fish/vendor_completions.d/trtvlm.fish ;;
    esac
    mkdir -p "$(dirname "$tree/usr/share/$file")"
    "$root/tools/qemu.sh" "$program" completions $shell >"$tree/usr/share/$file"
done

# The crates inside, each with its licence; then every text of a licence once, with the crates that it comes with.
crates() {
    (cd "$root" && "${CARGO:-cargo}" tree --locked --offline --edges normal --target aarch64-unknown-linux-gnu \
        --features "$features" --prefix none --format '{p}|{l}') | sed 's/ (\*)$//; s/ (proc-macro)|/|/' | grep -v '^trtvlm v' | sort -u
}
{
    cat <<END
The program and the library are under the MIT licence or the Apache License 2.0, as you like. Both contain Rust's
standard library, under the same terms, and the libraries listed here, whose own texts are in third-party-licences.gz.

END
    crates | sed 's/ v/ /; s/|/: /'
    printf '\n\n---- trtvlm: MIT\n\n'
    cat "$root/LICENSE-MIT"
    printf '\n\n---- trtvlm, and every library above that offers it: Apache-2.0\n\n'
    cat "$root/LICENSE-APACHE"
} >"$doc/copyright"
mkdir "$out/texts"
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
crates | sed 's/|.*//; s/ v/-/' >"$out/crates"
while read -r crate; do
    folder=$(ls -d "$registry"/*/"$crate" 2>/dev/null | head -n1)
    [ -n "$folder" ] || {
        echo "deb: the source of $crate is not in $registry: run 'make fetch'" >&2
        exit 1
    }
    find "$folder" -maxdepth 1 -type f | grep -iE '/(licen[cs]e|copying|copyright|notice|unlicense)[^/]*$' | sort | while read -r text; do
        digest=$(sha256sum <"$text" | cut -c1-16)
        cp "$text" "$out/texts/$digest"
        echo "$crate $(basename "$text")" >>"$out/texts/$digest.of"
    done
done <"$out/crates"
for of in "$out"/texts/*.of; do
    printf '\n\n---- %s\n\n' "$(sort -u "$of" | tr '\n' ',' | sed 's/,$//; s/,/, /g')"
    cat "${of%.of}"
done | gzip -9n >"$doc/third-party-licences.gz"

# What it needs, from what the linker wrote into the program.
highest() { "${prefix}objdump" -T "$program" | sed -n "s/.*($1_\([0-9.]*\)).*/\1/p" | sort -uV | tail -n1; }
depends="libc6 (>= $(highest GLIBC)), libgcc-s1"
if "${prefix}objdump" -p "$program" | grep -q 'NEEDED *libstdc++'; then depends="$depends, libstdc++6 (>= 12)"; fi
cat >"$tree/DEBIAN/control" <<END
Package: trtvlm
Version: $version
Architecture: arm64
Maintainer: ${DEBFULLNAME:-trtvlm} <${DEBEMAIL:-trtvlm@localhost}>
Section: science
Priority: optional
Installed-Size: $(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)
Depends: $depends
Suggests: libnvinfer10, libnvonnxparsers10, ffmpeg, g++, cmake, pkg-config
Description: answers about camera frames from small vision-language models
 Builds TensorRT engines from ONNX models, runs them, and answers questions
 about pictures. The static library, its C and C++ headers, a CMake package
 and a pkg-config file are for programs that fly.
 .
 Built with: ${features:-the CPU engine alone}.
END
find "$tree" -type d -exec chmod 755 {} +
find "$tree" -type f ! -perm -u=x -exec chmod 644 {} +
package=$out/trtvlm_${version}_arm64.deb
dpkg-deb --root-owner-group -Zxz --build "$tree" "$package" >&2
echo "$package"
