"""Times of the fault test (`make test-faults`): for each fault the longest and the median over its trials, beside its cap.

usage: faults.py ROWS   (the file that the test wrote, FAULT_ROWS)
"""
import json
import statistics
import sys

from report import Report


def main():
    report = Report("faults", command="test-faults")
    faults = {}
    for row in json.load(open(sys.argv[1])):
        faults.setdefault((row["name"], row["cap"]), []).append(row["seconds"])
    for (name, cap), seconds in faults.items():
        report.row(f"{name}, longest", round(max(seconds), 1), "s", len(seconds), (f"<= {cap}", lambda s, cap=cap: s <= cap))
        report.row(f"{name}, median", round(statistics.median(seconds), 1), "s", len(seconds))
    report.write()


main()
