#!/usr/bin/env python3
"""How the drafters of a model fare: asks the same questions with each, prints a Markdown table.

    tools/draft_table.py TRTVLM MODEL --data ITEMS.jsonl [--family describe] [--k 4,8] [--json OUT.json]

Needs the standard library only. Equal are answers whose token ids are the items' (PyTorch, FP32). The drafter's share is its part of the time after the first token.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile


def evaluate(trtvlm, model, data, options):
    command = [trtvlm, "eval", model, "--data", data, "--json", *options]
    print("$ " + " ".join(map(str, command)), file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def of_family(data, family, folder):
    """A list of the items of one kind; pictures are found through a link."""
    out = pathlib.Path(folder) / "items.jsonl"
    lines = [line for line in data.read_text().splitlines() if json.loads(line).get("family") == family]
    out.write_text("\n".join(lines) + "\n")
    for entry in data.resolve().parent.iterdir():
        if entry.is_dir():
            (out.parent / entry.name).symlink_to(entry)
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("trtvlm", type=pathlib.Path)
    p.add_argument("model", type=pathlib.Path)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--family", help="items of this kind only")
    p.add_argument("--k", default="4", help="lengths of drafts, a comma list")
    p.add_argument("--drafters", default="ngram,early-exit,head")
    p.add_argument("--json", type=pathlib.Path)
    a = p.parse_args()
    rows = [("off", None)] + [(d, k) for k in a.k.split(",") for d in a.drafters.split(",")] + [("auto", None)]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        data = of_family(a.data, a.family, folder) if a.family else a.data
        for drafter, k in rows:
            report = evaluate(a.trtvlm.resolve(), a.model, data, ["--draft", drafter, *(["--draft-tokens", k] if k else [])])
            results.append({"drafter": drafter, "k": k, "equal": report["agreement"]["answers"], "decode_ms": report["latency_ms"]["decode"], **report["speculation"]})
    print("| drafter | K | equal | accepted | by position, % | tokens a pass | near ties |\n|---|---|---|---|---|---|---|")
    for r in results:
        share = lambda p: f"{100 * p['accepted'] / p['proposed']:.0f}" if p["proposed"] else "-"
        accepted = f"{100 * r['accepted'] / r['proposed']:.1f} % ({r['accepted']} of {r['proposed']})" if r["proposed"] else "-"
        places = ", ".join(map(share, r["by_position"])) or "-"
        print(f"| {r['drafter']} | {r['k'] or '-'} | {r['equal']['hits']} of {r['equal']['of']} | {accepted} | {places} | {r['tokens_per_pass']:.2f} | {r['near_ties']} |")
    if a.json:
        a.json.write_text(json.dumps({"model": str(a.model), "data": str(a.data), "family": a.family, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
