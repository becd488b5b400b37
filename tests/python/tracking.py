#!/usr/bin/env python3
"""What TensorBoard and MLflow themselves make of what a training told them; prints JSON.

files FOLDER              what TensorBoard reads from a folder: {run: {"scalars": {tag: [[step, value]]}, "texts": {tag: text}}}
served FOLDER fast|slow   the same scalars from a running `tensorboard --logdir`, with either of its two readers
runs URI EXPERIMENT       the runs of an experiment, from an MLflow server: [{status, params, tags, metrics: {key: [[step, value]]}}]
deleted URI EXPERIMENT    how many of its runs are deleted
"""
import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

DEADLINE_SECONDS = 60


def files(folder):
    from tensorboard.backend.event_processing import plugin_event_multiplexer
    from tensorboard.util import tensor_util

    reader = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"scalars": 0, "text": 0})
    reader.AddRunsFromDirectory(folder)
    reader.Reload()
    found = {}
    for run in reader.Runs():
        def events(tag):
            return [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in reader.Tensors(run, tag)]

        scalars = {tag: [[step, float(value)] for step, value in events(tag)] for tag in reader.PluginRunToTagToContent("scalars").get(run, {})}
        texts = {tag: events(tag)[-1][1].item().decode() for tag in reader.PluginRunToTagToContent("text").get(run, {})}
        found[run] = {"scalars": scalars, "texts": texts}
    return found


def served(folder, reader):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "tensorboard"
    server = subprocess.Popen(
        [program, "--logdir", folder, "--host", "127.0.0.1", "--port", str(port), "--load_fast", "true" if reader == "fast" else "false", "--samples_per_plugin", "scalars=100000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def ask(path, **query):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/{path}?{urllib.parse.urlencode(query)}", timeout=5) as answer:
            return json.load(answer)

    try:
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                tags = ask("tags")
                if tags:
                    break
            except OSError:
                if server.poll() is not None:
                    sys.exit("tensorboard ended")
            if time.monotonic() > end:
                sys.exit("tensorboard shows nothing")
            time.sleep(0.2)
        # A folder is read file by file: it is read when a second look finds no more.
        before = None
        while True:
            found = {run: {tag: [[step, value] for _, step, value in ask("scalars", run=run, tag=tag)] for tag in of} for run, of in ask("tags").items()}
            if found == before:
                return found
            if time.monotonic() > end:
                sys.exit("tensorboard does not come to an end")
            before = found
            time.sleep(1)
    finally:
        subprocess.run(["kill", "--", f"-{server.pid}"], check=False)
        server.wait()


def experiment_runs(uri, experiment, view):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id], run_view_type=view) if found else []


def runs(uri, experiment):
    from mlflow.entities import ViewType

    client, found = experiment_runs(uri, experiment, ViewType.ACTIVE_ONLY)
    return [{
        "id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": run.data.tags,
        "metrics": {key: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics},
    } for run in found]


def deleted(uri, experiment):
    from mlflow.entities import ViewType

    return len(experiment_runs(uri, experiment, ViewType.DELETED_ONLY)[1])


if __name__ == "__main__":
    print(json.dumps({"files": files, "served": served, "runs": runs, "deleted": deleted}[sys.argv[1]](*sys.argv[2:])))
