#!/usr/bin/env python3
"""Asks a service with what Python brings: predict.py [http://localhost:8080]

With TLS: SSL_CERT_FILE=ca.crt predict.py https://intent.<namespace>.svc
"""
import json
import sys
import time
import urllib.error
import urllib.request

TRIES = 3


def predict(url, texts, seconds=2.0):
    """One prediction for each text."""
    return post(f"{url}/predict", {"texts": texts}, seconds)["predictions"]


def post(url, body, seconds=2.0):
    """The answer to a question. Another try where the pod is full, ending or gone: another pod may answer."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", "X-Request-Timeout": str(seconds)}
    )
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=seconds + 1) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or not left:
                reason = json.load(error)["error"]
                raise SystemExit(f"{error.code} {reason['reason']}: {reason['message']}") from None
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            # No answer. A question changes nothing, and feedback is counted once: it may be sent again.
            if not left:
                raise
            time.sleep(1)


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080"
    for prediction in predict(url, ["how much longer on the egg timer", "turn off the lights"]):
        print(prediction["label"], round(prediction["probability"], 3), prediction["request_id"])
