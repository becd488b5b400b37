#!/usr/bin/env python3
"""Asks a service over gRPC with NVIDIA's client: pip install "tritonclient[grpc]"; open_inference.py [localhost:8080] [model]"""
import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:8080"
model = sys.argv[2] if len(sys.argv) > 2 else "intent"
texts = np.array(["how much longer on the egg timer", "turn off the lights"], dtype=np.object_)

text = InferInput("text", [len(texts)], "BYTES")
text.set_data_from_numpy(texts)
# With TLS: InferenceServerClient(address, ssl=True, root_certificates="ca.crt"), where address has port 443.
with InferenceServerClient(address) as client:
    result = client.infer(model, [text], client_timeout=2)
for label, probability in zip(result.as_numpy("label"), result.as_numpy("probability")):
    print(label.decode(), round(float(probability), 3))
