#!/usr/bin/env bash
# Asks a service with curl: curl.sh [http://localhost:8080] [model]
# With TLS: CURL_CA_BUNDLE=ca.crt curl.sh https://intent.<namespace>.svc
set -euo pipefail
url=${1:-http://localhost:8080} model=${2:-intent}

# One text. It waits for two seconds at most, and is tried again where the pod is full, ending (429, 503) or gone.
curl -fsS --retry 3 --retry-connrefused "$url/predict" -H 'Content-Type: application/json' -H 'X-Request-Timeout: 2' \
  -d '{"text": "how much longer on the egg timer"}'
echo

# A list, answered in its order; a long answer comes by gzip where it is asked for.
curl -fsS --retry 3 --retry-connrefused --compressed "$url/predict" -H 'Content-Type: application/json' -d '{"texts": ["turn off the lights", "what time is it"]}'
echo

# The Open Inference Protocol: the model is the InferenceService.
curl -fsS --retry 3 --retry-connrefused "$url/v2/models/$model/infer" -H 'Content-Type: application/json' -d '{
  "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["how much longer on the egg timer"]}],
  "outputs": [{"name": "label"}, {"name": "probability"}]}'
echo
