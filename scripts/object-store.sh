#!/usr/bin/env bash
# Makes the local cluster's object store known to an example (object-store.sh [intent]): a Service minio.object-store for its
# address, the example's namespace, and the Secret with the credentials. With your own bucket, only the Secret is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
example=${1:-intent}
cluster=${CARGO_TARGET_DIR:-target}/${PROFILE:-ci}/flywheel-localcluster
variables=$("$cluster" env)
eval "$variables"
hostport=${FLYWHEEL_S3_ENDPOINT#*://}
"$cluster" kubectl apply --server-side -f "examples/$example/namespace.yaml" -f - >/dev/null <<YAML
apiVersion: v1
kind: Namespace
metadata:
  name: object-store
---
apiVersion: v1
kind: Service
metadata:
  name: minio
  namespace: object-store
spec:
  ports:
  - port: 9000
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: minio
  namespace: object-store
  labels:
    kubernetes.io/service-name: minio
addressType: IPv4
ports:
- port: ${hostport#*:}
endpoints:
- addresses:
  - ${hostport%:*}
YAML
"$cluster" kubectl apply --server-side -f - >/dev/null <<YAML
apiVersion: v1
kind: Secret
metadata:
  name: object-store
  namespace: $example
stringData:
  AWS_ACCESS_KEY_ID: $AWS_ACCESS_KEY_ID
  AWS_SECRET_ACCESS_KEY: $AWS_SECRET_ACCESS_KEY
YAML
