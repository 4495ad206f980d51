#!/bin/sh
# Line coverage of all tests without the tests' own lines, C++ not counted. Fails under 85 %.
#
# Needs the two programs of `cargo install --locked llvm_profparser` and Python; stable Rust is enough, no LLVM tools. Only this package
# is instrumented: its dependencies are those of the usual build, and the tests as fast as ever. The processes that tests start are
# counted, too; one that was killed leaves a profile that is cut short, which is left out.
#
# Nothing under src/ is left out: no file there needs a GPU to be run.
set -eu
cd "$(dirname "$0")/.."
floor=85
command -v cov >/dev/null 2>&1 && command -v profparser >/dev/null 2>&1 || {
    echo "coverage: install its tools first: cargo install --locked llvm_profparser" >&2
    exit 1
}

# A fixed place: cargo builds everything of ours again for a wrapper of another name.
work=${CARGO_TARGET_DIR:-$PWD/target}/coverage
rm -rf "$work"
mkdir -p "$work"
cat >"$work/rustc" <<'END'
#!/bin/sh
case " $* " in
*" --crate-name build_script_build "*) exec "$@" ;;
*) exec "$@" -Cinstrument-coverage ;;
esac
END
chmod +x "$work/rustc"
RUSTC_WORKSPACE_WRAPPER=$work/rustc CARGO_INCREMENTAL=0 CARGO_NET_OFFLINE=true LLVM_PROFILE_FILE="$work/%m-%p.profraw" \
    "${CARGO:-cargo}" test --locked --all-features --no-fail-fast --lib --bins --tests 2>&1 | tee "$work/log"

set --
for profile in "$work"/*.profraw; do
    if profparser show --input "$profile" >/dev/null 2>&1; then set -- "$@" --instr-profile "$profile"; fi
done
# The programs that cargo ran, and the one that they run.
for program in $(sed -n 's/^ *Running .*(\(.*\))$/\1/p' "$work/log") "${CARGO_TARGET_DIR:-target}/debug/trtvlm"; do
    set -- "$@" --object "$program"
done
cov show "$@" >"$work/lines"
python3 - "$work/lines" "$(pwd)/src/" $floor <<'END'
import re, sys

path, src, floor = sys.argv[1:]
files, current = {}, None
for line in open(path, errors="replace"):
    if line.startswith("/") and line.endswith(".rs\n"):
        current = files.setdefault(line.strip(), []) if line.startswith(src) and "tests" not in line else None
    elif current is not None and (found := re.match(r" *\d+\| *([\d.kM]*)\|(.*)", line)):
        current.append(found.groups())
rows = []
for name, lines in files.items():
    tests = next((i for i, (_, text) in enumerate(lines) if text.lstrip().startswith("#[cfg(test)]")), len(lines))
    counts = [count for count, _ in lines[:tests] if count]
    if counts:
        rows.append((sum(count != "0" for count in counts), len(counts), name.removeprefix(src)))
for run, total, name in sorted(rows, key=lambda row: row[0] / row[1]):
    print(f"{100 * run / total:6.1f} % of {total:4}  {name}")
run, total = sum(row[0] for row in rows), sum(row[1] for row in rows)
print(f"{100 * run / total:6.1f} % of {total} lines")
sys.exit(100 * run / total < float(floor))
END
if grep -q '^error' "$work/log"; then
    echo "coverage: not everything was built or passed, see $work/log" >&2
    exit 1
fi
