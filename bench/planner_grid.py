"""Is the planner's choice between the two forms of Hadamard attention the faster one?

    python bench/planner_grid.py [--hla build/hla] [--threads N] [--json FILE]

Measures both forms with `hla bench attention` over 40 shapes: 5 lengths, 2 lists of ranks for each of 2 value widths,
bidirectional and causal. Prints each shape's times and how much slower the planned form is than the better one; the
exit status is 1 if that is more than a tenth anywhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

TOKENS = "256,512,1024,2048,4096"
RANKS = {64: "16x16,32x32", 128: "32x32,64x64"}
LIMIT = 1.10


def measure(hla, value_dim, ranks, threads):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "attention.json")
        command = [hla, "bench", "attention", "-q", "--tokens", TOKENS, "--dim", str(value_dim), "--ranks", ranks,
                   "--mode", "both", "--methods", "hadamard_state,hadamard_quadratic", "--json", path]
        if threads:
            command += ["--threads", str(threads)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(path) as file:
            return json.load(file)["runs"]


def compare(runs):
    """One row a shape: its name, whether the state form is planned, seconds of both forms, planned over better."""
    shapes = {}
    for run in runs:
        shape = (run["V"], run["ranks"], run["T"], run["mode"])
        shapes.setdefault(shape, {})[run["method"]] = run
    rows = []
    for (value_dim, ranks, tokens, mode), forms in shapes.items():
        state, quadratic = forms["hadamard_state"], forms["hadamard_quadratic"]
        planned = state if state["planned"] else quadratic
        rows.append({"V": value_dim, "ranks": ranks, "T": tokens, "mode": mode, "planned": planned["method"],
                     "state_seconds": state["seconds"], "quadratic_seconds": quadratic["seconds"],
                     "ratio": planned["seconds"] / min(state["seconds"], quadratic["seconds"])})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hla", default="build/hla")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", help="write the rows there")
    options = parser.parse_args()
    rows = []
    for value_dim, ranks in RANKS.items():
        rows += compare(measure(options.hla, value_dim, ranks, options.threads))
    for row in rows:
        print(f"V {row['V']:3} {row['ranks']:6} T {row['T']:5} {row['mode']:13} "
              f"state {1e3 * row['state_seconds']:9.3f} ms  quadratic {1e3 * row['quadratic_seconds']:9.3f} ms  "
              f"{row['planned']:18} {row['ratio']:.3f}")
    worst = max(rows, key=lambda row: row["ratio"])
    print(f"{len(rows)} shapes, {sum(row['ratio'] > 1 for row in rows)} where the other form was faster; at worst the "
          f"planned form takes {worst['ratio']:.3f} times as long")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"limit": LIMIT, "rows": rows}, file, indent=1)
            file.write("\n")
    return int(not worst["ratio"] <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
