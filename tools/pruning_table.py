"""Accuracy of every pruning policy at every retention, as a Markdown table.

    python tools/pruning_table.py target/release/trtvlm onnx/uav-tiny --data ITEMS.jsonl [--positions packed] [--json OUT]

Runs `trtvlm eval` once a cell; the interval is the 95 % one that it reports.
"""
import argparse
import json
import pathlib
import subprocess
import sys

POLICIES = ["learned", "attention", "diverse", "similarity", "norm", "grid", "random"]
SHARES = ["0.7", "0.5", "0.3", "0.25", "0.2", "0.1", "0.05"]


def evaluate(options, more):
    command = [options.trtvlm, "eval", options.model, "--data", options.data, "--draft", "off", "--json", *more]
    if options.samples:
        command += ["--samples", str(options.samples)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def cell(report):
    share = report["accuracy"]
    low, high = share["interval95"]
    return f"{100 * share['share']:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trtvlm")
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--positions", default="original", choices=["original", "packed"])
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--shares", nargs="+", default=SHARES)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    reports = {"1.0": evaluate(options, [])}
    print(f"all tokens: {cell(reports['1.0'])}\n")
    print(f"| policy, positions {options.positions} | " + " | ".join(options.shares) + " |")
    print("|---|" + "---|" * len(options.shares))
    for policy in options.policies:
        cells = []
        for share in options.shares:
            report = evaluate(options, ["--keep", share, "--pruner", policy, "--positions", options.positions])
            reports[f"{policy} {share}"] = report
            cells.append(cell(report))
        print(f"| `{policy}` | " + " | ".join(cells) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
