"""The Open Inference Protocol as KServe's own SDK speaks it: `kserve_client.py http|grpc HOST:PORT`.

The server is one of crates/server/tests, as for open_inference.py.
"""

import asyncio
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

protocol, address = sys.argv[1:]
texts = ["é", "abcd", "ab"]
longs = np.array([1 / 2, 4 / 5, 2 / 3], dtype=np.float32)


def question(texts, binary=True, outputs=None, model="intent"):
    tensor = InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=binary)
    return InferRequest(model_name=model, request_id="my id", infer_inputs=[tensor], request_outputs=outputs)


def check(answer):
    # The client does not keep the version that HTTP tells.
    version = "intent-v7" if protocol == "grpc" else None
    assert (answer.model_name, answer.model_version, answer.id) == ("intent", version, "my id"), vars(answer)
    label, probability, all_probs = (answer.get_output_by_name(name) for name in ("label", "probability", "all_probs"))
    labels = [word if isinstance(word, str) else word.decode() for word in label.as_numpy()]
    assert labels == ["short", "long", "long"]
    np.testing.assert_allclose(probability.as_numpy(), np.maximum(longs, 1 - longs), rtol=1e-6)
    np.testing.assert_allclose(all_probs.as_numpy(), np.stack([1 - longs, longs], axis=1), rtol=1e-6)


async def http():
    url = f"http://{address}"
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        assert await client.is_server_live(url) and await client.is_server_ready(url)
        assert await client.is_model_ready(url, "intent") and not await client.is_model_ready(url, "other")
        for binary in (True, False):
            # It answers binary where it was asked so.
            check(await client.infer(url, question(texts, binary), model_name="intent"))
            outputs = [RequestedOutput(name, {"binary_data": binary}) for name in ("all_probs", "label", "probability")]
            check(await client.infer(url, question(texts, binary, outputs), model_name="intent"))
        # It takes gzip without being asked.
        many = [texts[i % 3] for i in range(128)]
        answer = await client.infer(url, question(many, False), model_name="intent")
        assert len(answer.get_output_by_name("label").as_numpy()) == 128
        for bad, model, word in [([" "], "intent", "EmptyText"), (["a"], "other", "NotFound")]:
            try:
                await client.infer(url, question(bad), model_name=model)
            except httpx.HTTPStatusError as error:
                assert word in str(error), error
            else:
                raise AssertionError(f"not refused: {word}")


async def over_grpc():
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("intent")
        check(await client.infer(question(texts)))
        check(await client.infer(question(texts, False)))
        for bad, model, code in [([" "], "intent", "INVALID_ARGUMENT"), (["a"], "other", "NOT_FOUND")]:
            try:
                await client.infer(question(bad, model=model))
            except grpc.RpcError as error:
                assert error.code().name == code, error
            else:
                raise AssertionError(f"not refused: {code}")


asyncio.run({"http": http, "grpc": over_grpc}[protocol]())
print("ok")
