"""Print what a finished demo run reached and where its files are.

    python tools/demo_summary.py runs/demo

Exit status 1 where a task's macro-F1 is below what the demo promises.
"""

import json
import sys
from pathlib import Path

PROMISED_MACRO_F1 = 0.6


def main(workdir: Path) -> int:
    results = json.loads((workdir / "results" / "metrics.json").read_text())
    metrics, baseline = results["metrics"], results["baseline"]
    tasks = [key.removesuffix("/macro_f1") for key in metrics if key.endswith("/macro_f1")]
    width = max(map(len, tasks))
    print(f"\n{'task':<{width}}  top-1  macro-F1   majority class: top-1  macro-F1")
    for task in tasks:
        print(
            f"{task:<{width}}  {metrics[f'{task}/top1']:.3f}     {metrics[f'{task}/macro_f1']:.3f}"
            f"   {'':<16} {baseline[f'{task}/top1']:.3f}     {baseline[f'{task}/macro_f1']:.3f}"
        )
    print(f"\nReport:     {workdir / 'results' / 'report.html'}")
    print(f"Model:      {workdir / 'export'}")
    print(f"Prediction: {workdir / 'prediction.csv'}")
    low = [task for task in tasks if metrics[f"{task}/macro_f1"] < PROMISED_MACRO_F1]
    if low:
        print(f"Below the promised macro-F1 of {PROMISED_MACRO_F1}: {', '.join(low)}")
    return bool(low)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/demo_summary.py WORKDIR")
    sys.exit(main(Path(sys.argv[1])))
