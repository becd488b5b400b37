"""The Open Inference Protocol as NVIDIA's own client speaks it: `open_inference.py http|grpc HOST:PORT`.

The server is one of crates/server/tests: model `intent`, version `intent-v7`, labels `short` and `long`; the longer a text,
the surer of the second.
"""

import importlib
import sys

import numpy as np
from tritonclient.utils import InferenceServerException

protocol, address = sys.argv[1:]
triton = importlib.import_module(f"tritonclient.{protocol}")
client = triton.InferenceServerClient(address)
texts = ["é", "abcd", "ab"]
longs = np.array([1 / 2, 4 / 5, 2 / 3], dtype=np.float32)


def get(value, *names):
    """A field of a JSON object or of a message."""
    for name in names:
        value = value[name] if isinstance(value, (dict, list)) or isinstance(name, int) else getattr(value, name)
    return value


def labels(result):
    """The client gives bytes for binary tensors and strings for those in JSON."""
    return [label if isinstance(label, str) else label.decode() for label in result.as_numpy("label")]


def ask(texts, shape, outputs=None, model="intent", version="", client_timeout=None, compressed=False, **how):
    tensor = triton.InferInput("text", shape, "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=np.object_).reshape(shape), **how)
    waits = {} if client_timeout is None else {"client_timeout": client_timeout}
    coding = {}
    if compressed and protocol == "http":
        coding = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    elif compressed:
        coding = {"compression_algorithm": "gzip"}
    return client.infer(model, [tensor], model_version=version, request_id="my id", outputs=outputs, **waits, **coding)


def refused(what, call):
    try:
        call()
    except InferenceServerException as error:
        assert what in str(error), error
    else:
        raise AssertionError(f"not refused: {what}")


assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("intent") and client.is_model_ready("intent", "intent-v7")
server = client.get_server_metadata()
assert get(server, "name") == "flywheel" and "binary_tensor_data" in get(server, "extensions")
model = client.get_model_metadata("intent", "intent-v7")
assert get(model, "name") == "intent" and list(get(model, "versions")) == ["intent-v7"]
assert [get(model, "inputs", 0, f) for f in ("name", "datatype")] == ["text", "BYTES"]
assert [get(o, "name") for o in get(model, "outputs")] == ["label", "probability", "all_probs"]
assert [int(n) for n in get(model, "outputs", 2, "shape")] == [-1, 2]

# Binary is the default of the HTTP client, and the only way of the other.
ways = [{}] if protocol == "grpc" else [{}, {"binary_data": False}]
for way in ways:
    for shape in ([3], [3, 1]):
        result = ask(texts, shape, **way)
        assert get(result.get_response(), "id") == "my id"
        assert get(result.get_response(), "model_version") == "intent-v7"
        assert labels(result) == ["short", "long", "long"]
        np.testing.assert_allclose(result.as_numpy("probability"), np.maximum(longs, 1 - longs), rtol=1e-6)
        np.testing.assert_allclose(result.as_numpy("all_probs"), np.stack([1 - longs, longs], axis=1), rtol=1e-6)
    for as_binary in [{}] if protocol == "grpc" else [{"binary_data": True}, {"binary_data": False}]:
        wanted = [triton.InferRequestedOutput(name, **as_binary) for name in ("all_probs", "label")]
        result = ask(texts, [3], wanted, version="intent-v7", **way)
        assert [get(o, "name") for o in get(result.get_response(), "outputs")] == ["all_probs", "label"]
        assert result.as_numpy("probability") is None
        assert labels(result) == ["short", "long", "long"]

# What is sent by gzip, and over HTTP what comes back.
many = [texts[i % 3] for i in range(126)]
for way in ways:
    assert labels(ask(many, [126], compressed=True, **way)) == ["short", "long", "long"] * 42

refused("NotFound", lambda: ask(["a"], [1], model="other"))
refused("NotFound", lambda: ask(["a"], [1], version="intent-v8"))
refused("EmptyText", lambda: ask([" "], [1]))
refused("TooManyTexts", lambda: ask(["a"] * 129, [129]))
refused("no such output", lambda: ask(["a"], [1], [triton.InferRequestedOutput("logits")]))
refused("shape", lambda: ask(["a", "b"], [1, 2]))

if protocol == "http":
    assert not client.is_model_ready("other")
else:
    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc

    refused("NotFound", lambda: client.is_model_ready("other"))
    refused("DEADLINE_EXCEEDED", lambda: ask(["sleep 3000"], [1], client_timeout=0.2))
    channel = grpc.insecure_channel(address)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    # Elements as they are come back as they are.
    request = messages.ModelInferRequest(model_name="intent")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[3])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    response, call = stub.ModelInfer.with_call(request, metadata=[("x-request-id", "mine")])
    assert response.outputs[0].contents.bytes_contents == [b"short", b"long", b"long"]
    np.testing.assert_allclose(response.outputs[2].contents.fp32_contents, np.stack([1 - longs, longs], axis=1).ravel(), rtol=1e-6)
    assert response.id == "mine" and ("x-request-id", "mine") in call.initial_metadata()
    # gRPC's own health service, whose messages are one field each: a string, and the number 1 for serving.
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"") == check(b"\n\x1e" + b"inference.GRPCInferenceService") == b"\x08\x01"
    for method, body, code in [
        ("/grpc.health.v1.Health/Check", b"\n\x05other", grpc.StatusCode.NOT_FOUND),
        ("/grpc.health.v1.Health/Watch", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/inference.GRPCInferenceService/RepositoryIndex", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/inference.GRPCInferenceService/ModelInfer", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("/inference.GRPCInferenceService/ModelInfer", b"*\x00" * 1000, grpc.StatusCode.INVALID_ARGUMENT),
        ("/inference.GRPCInferenceService/ModelInfer", b"\x00" * 2_000_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ]:
        try:
            channel.unary_unary(method)(body)
        except grpc.RpcError as error:
            assert error.code() == code, (method, error)
        else:
            raise AssertionError(method)
print("ok")
