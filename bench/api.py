"""The Kubernetes API for benchmarks of thousands of objects, where a kubectl for each would cost more than what is measured."""
import base64
import http.client
import json
import ssl
import tempfile
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from cluster import kubectl

# Requests at once: enough to keep an API server of two cores busy.
TOGETHER = 16
# Objects of one answer of a list: the whole of ten thousand would be read into memory at once.
PAGE = 500
# Seconds that one request, or a watch without news, may take.
PATIENCE = 120


class Answer(Exception):
    """Another answer than one of success."""

    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """Connections as the kubeconfig's user, one for each thread."""

    def __init__(self):
        config = json.loads(kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.address = urllib.parse.urlsplit(cluster["server"])
        self.tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        # Python reads a client's certificate from a file only.
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"]))
            pem.flush()
            self.tls.load_cert_chain(pem.name)
        self.local = threading.local()
        self.pool = ThreadPoolExecutor(TOGETHER)

    def connect(self):
        return http.client.HTTPSConnection(self.address.hostname, self.address.port, context=self.tls, timeout=PATIENCE)

    def raw(self, method, path, body=None, kind="application/json"):
        for again in (True, False):
            connection = getattr(self.local, "connection", None) or self.connect()
            self.local.connection = connection
            try:
                connection.request(method, path, body=None if body is None else json.dumps(body), headers={"Content-Type": kind, "Accept": "application/json"})
                response = connection.getresponse()
                text = response.read()
                break
            except (http.client.HTTPException, OSError):
                # The server may close a connection that was idle.
                connection.close()
                self.local.connection = None
                if not again:
                    raise
        if response.status >= 300:
            raise Answer(response.status, text.decode(errors="replace")[:500])
        return text

    def send(self, method, path, body=None, kind="application/json"):
        return json.loads(self.raw(method, path, body, kind))

    def get(self, path):
        return self.send("GET", path)

    def create(self, path, body):
        return self.send("POST", path, body)

    def patch(self, path, body):
        return self.send("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path):
        """Deletes; what is gone already is as well."""
        try:
            self.send("DELETE", path, {"propagationPolicy": "Background"})
        except Answer as answer:
            if answer.status != 404:
                raise

    def list(self, path, **query):
        items, query = [], {**query, "limit": PAGE}
        while True:
            answer = self.get(f"{path}?{urllib.parse.urlencode(query)}")
            items += answer["items"]
            if not answer["metadata"].get("continue"):
                return items
            query["continue"] = answer["metadata"]["continue"]

    def count(self, path):
        answer = self.get(f"{path}?limit=1")
        return len(answer["items"]) + (answer["metadata"].get("remainingItemCount") or 0)

    def all(self, function, items):
        """Calls the function with each of the items, some at once."""
        return list(self.pool.map(function, items))

    def watch(self, path, see, **query):
        return Watch(self, path, see, query)


class Watch:
    """Calls `see(type, object, time)` for what changes from now on, until it is left."""

    def __init__(self, api, path, see, query):
        self.api, self.path, self.see, self.query = api, path, see, query
        # Of what a selector leaves out as well: it says from when on.
        self.version = api.get(f"{path}?limit=1")["metadata"]["resourceVersion"]
        self.news, self.left, self.failure = threading.Condition(), False, None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.left = True

    def run(self):
        while not self.left:
            try:
                self.follow()
            except Exception as failure:  # the one who waits tells it
                with self.news:
                    self.failure = failure
                    self.news.notify_all()
                return

    def follow(self):
        connection = self.api.connect()
        try:
            query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": self.version, "timeoutSeconds": PATIENCE // 2, **self.query}
            connection.request("GET", f"{self.path}?{urllib.parse.urlencode(query)}", headers={"Accept": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise Answer(response.status, response.read().decode(errors="replace")[:500])
            for line in response:
                now, event = time.monotonic(), json.loads(line)
                if self.left:
                    return
                if event["type"] == "ERROR":
                    raise Answer(event["object"].get("code"), event["object"].get("message"))
                self.version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    with self.news:
                        self.see(event["type"], event["object"], now)
                        self.news.notify_all()
        finally:
            connection.close()

    def until(self, done, what, within):
        """Waits until `done()` is true, which is asked after each event."""
        deadline = time.monotonic() + within
        with self.news:
            while not done():
                if self.failure:
                    raise RuntimeError(f"the watch of {self.path} failed: {self.failure}")
                if not self.news.wait(max(0.0, min(deadline - time.monotonic(), 1.0))) and time.monotonic() >= deadline:
                    raise RuntimeError(f"{what}: not in {within} s")


def until(done, what, within, every=0.2):
    """Waits until `done()` is true and returns what it said."""
    deadline = time.monotonic() + within
    while not (said := done()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not in {within} s")
        time.sleep(every)
    return said
