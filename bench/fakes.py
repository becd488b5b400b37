"""Fake nodes (KWOK) of a benchmark's own, and one server that answers at the addresses of all their pods. All of it is simulated."""
import ipaddress
import json
import os
import subprocess
from pathlib import Path

from api import until
from banking77 import environment

NODES = "/api/v1/nodes"
# What marks the nodes of a class, as crates/localcluster/src/kinds.rs has it.
PRODUCTS = {"a100": "NVIDIA-A100-SXM4-40GB", "t4": "Tesla-T4"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
LABEL = "scale.flywheel.dev/node"
# A cluster's pods are a /14 (docs/local-cluster.md), each node's a /24: so many pods has a node an address for.
PODS_PREFIX, NODE_PODS_MAX = 14, 250
# Nodes have addresses from .10 on, of which a machine's few nodes take the first.
SERVER_HOST = 250
INSIDE_PORT = 9090


class FakeNodes:
    """Nodes that exist until they are left."""

    def __init__(self, api):
        self.api, self.made = api, {}

    def __enter__(self):
        self.remove()
        return self

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        old = [n["metadata"]["name"] for n in self.api.list(NODES, labelSelector=LABEL)]
        self.api.all(lambda name: self.api.delete(f"{NODES}/{name}"), old)
        self.made = {}

    def want(self, kind, count, gpus):
        """Exactly so many nodes of this kind with so many GPUs each; of the kind `plain` without GPUs and open to all pods."""
        if self.made.get(kind) == (count, gpus):
            return
        before = self.api.list(NODES, labelSelector=f"{LABEL}={kind}")
        self.api.all(lambda n: self.api.delete(f"{NODES}/{n['metadata']['name']}"), before)
        names = [f"scale-{kind}-{n:04}" for n in range(1, count + 1)]
        self.api.all(lambda name: self.api.create(NODES, node(name, kind, gpus)), names)
        self.made[kind] = (count, gpus)
        until(lambda: sum(ready(n) for n in self.list(kind)) == count, f"{count} fake nodes Ready", 60 + count // 5, 1)

    def list(self, kind):
        return self.api.list(NODES, labelSelector=f"{LABEL}={kind}")


def node(name, kind, gpus):
    amounts = {"cpu": "1000", "memory": "4Ti", "pods": str(NODE_PODS_MAX)}
    labels = {"type": "kwok", LABEL: kind, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    if kind in PRODUCTS:
        amounts["nvidia.com/gpu"] = str(gpus)
        labels["nvidia.com/gpu.product"] = PRODUCTS[kind]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "spec": {"taints": [TAINT] if kind in PRODUCTS else []}, "status": {"capacity": amounts, "allocatable": amounts}}


def ready(node):
    conditions = (node.get("status") or {}).get("conditions") or []
    return bool(node["spec"].get("podCIDR")) and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def ip(*arguments, within=None):
    enter = ["nsenter", f"--net=/proc/{within}/ns/net"] if within else []
    return subprocess.run([*enter, "ip", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


class FakePods:
    """One server at all addresses of fake nodes' pods, in a network namespace of its own on the cluster's bridge. The namespace and
    what is in it end with the server; the server ends with this process, also when that is killed."""

    def __init__(self, api, version, digest):
        nodes = [n for n in api.list(NODES) if n["metadata"]["labels"].get("type") != "kwok"]
        if not nodes:
            raise RuntimeError("no real node: make cluster A100=0 T4=0 KWOK=1")
        inner = next(a["address"] for a in nodes[0]["status"]["addresses"] if a["type"] == "InternalIP")
        route = json.loads(ip("-j", "route", "get", inner))[0]
        self.bridge, self.gateway = route["dev"], route["prefsrc"]
        self.address = str(ipaddress.ip_network(f"{self.gateway}/24", strict=False)[SERVER_HOST])
        self.real = [n["spec"]["podCIDR"] for n in nodes]
        self.range = str(ipaddress.ip_network(self.real[0]).supernet(new_prefix=PODS_PREFIX))
        self.command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", environment("FAKE_PODS"), version, digest]

    def __enter__(self):
        self.server = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            self.connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def connect(self):
        pid, link = self.server.pid, f"{self.bridge}-fake"
        space = lambda of: os.readlink(f"/proc/{of}/ns/net")
        until(lambda: space(pid) != space("self"), "the fake pods' network namespace", 10, 0.01)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", pid)
        # `flywheel-localcluster down` knows a cluster's links by their alias.
        ip("link", "set", link, "alias", Path(environment("KUBECONFIG")).parent)
        ip("link", "set", link, "master", self.bridge, "up")
        ip("addr", "add", f"{self.address}/24", "dev", "eth0", within=pid)
        for device in ("lo", "eth0"):
            ip("link", "set", device, "up", within=pid)
        ip("route", "add", "default", "via", self.gateway, within=pid)
        ip("route", "add", "local", self.range, "dev", "lo", within=pid)
        # Real nodes' ranges are smaller and go before, here and there: the operator is a pod of one of them.
        for real in self.real:
            ip("route", "add", real, "via", self.gateway, "dev", "eth0", "table", "local", within=pid)
        ip("route", "replace", self.range, "via", self.address, "dev", self.bridge)

    def __exit__(self, *_):
        subprocess.run(["ip", "route", "del", self.range, "dev", self.bridge], capture_output=True)
        self.server.kill()
        self.server.wait()

    def silence(self, ranges, silent=True):
        """Drops what is sent to these nodes' pods, as when the nodes are gone; or no longer."""
        # In the table of local routes, where the longer one wins.
        action = "add" if silent else "del"
        lines = "".join(f"route {action} blackhole {r} table local\n" for r in ranges)
        subprocess.run(["nsenter", f"--net=/proc/{self.server.pid}/ns/net", "ip", "-batch", "-"], input=lines, text=True, check=True)
