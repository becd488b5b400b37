"""kubectl, for benchmarks on a running cluster."""
import json
import subprocess

from banking77 import environment


def kubectl(*arguments, check=True, text=None):
    run = subprocess.run([environment("KUBECTL"), *map(str, arguments)], capture_output=True, text=True, input=text, timeout=120)
    if check and run.returncode:
        raise RuntimeError(f"kubectl {' '.join(map(str, arguments))}: {run.stderr.strip()}")
    return run.stdout


def get(*arguments):
    return json.loads(kubectl("get", *arguments, "-o", "json"))
