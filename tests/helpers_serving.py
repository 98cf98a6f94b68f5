"""TensorFlow Serving in small: a SavedModel behind its REST API and its gRPC service, for clients to be tested with.

What is sent and what comes back is mapped as TensorFlow Serving's documentation says (api_rest.md, "Predict API"): by
row, `instances` are stacked, and every output must have one row for each; by column, `inputs` are taken as they are.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def sound(loaded: Any, *waveforms: Any, signature: str = "sound") -> dict[str, Any]:
    """What a signature puts out for a batch of waveforms."""
    lengths = np.array([waveform.size for waveform in waveforms], np.int32)
    padded = np.full((len(waveforms), lengths.max()), 0.5, np.float32)  # what is behind a length must not count
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: waveform.size] = waveform
    outputs = loaded.signatures[signature](waveforms=tf.constant(padded), lengths=tf.constant(lengths))
    return {name: value.numpy() for name, value in outputs.items()}


def rest_predict(loaded: Any, body: bytes) -> tuple[int, bytes]:
    """Status and JSON for the JSON body of a POST to `/v1/models/NAME:predict`."""
    try:
        return 200, json.dumps(_answer(loaded, json.loads(body)), allow_nan=False).encode()
    except (ValueError, LookupError, TypeError) as fault:
        return 400, json.dumps({"error": str(fault)}).encode()


def _answer(loaded: Any, request: dict[str, Any]) -> dict[str, Any]:
    signature = loaded.signatures[request.get("signature_name", "serving_default")]
    specs = signature.structured_input_signature[1]
    by_row = "instances" in request
    columns = request["inputs"] if not by_row else _columns(request["instances"], specs)
    if not isinstance(columns, dict):
        columns = {next(iter(specs)): columns}
    outputs = signature(**{name: tf.constant(columns[name], spec.dtype) for name, spec in specs.items()})
    values = {name: value.numpy() for name, value in outputs.items()}
    if not by_row:
        listed = {name: value.tolist() for name, value in values.items()}
        return {"outputs": listed if len(listed) > 1 else next(iter(listed.values()))}
    n = len(request["instances"])
    if any(value.ndim == 0 or len(value) != n for value in values.values()):
        raise ValueError("Tensor name: has inconsistent batch size")
    rows = [{name: value[k].tolist() for name, value in values.items()} for k in range(n)]
    return {"predictions": rows if len(values) > 1 else [next(iter(row.values())) for row in rows]}


def _columns(instances: list[Any], specs: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(instances[0], dict):
        return {next(iter(specs)): instances}
    return {name: [instance[name] for instance in instances] for name in specs}


@contextmanager
def rest_server(loaded: Any) -> Iterator[int]:
    """The REST API on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, content = rest_predict(loaded, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status if self.path == "/v1/models/birdtune:predict" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *said: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class _Predict(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the service's own name
        signature = self._loaded.signatures[request.model_spec.signature_name or "serving_default"]
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        response = predict_pb2.PredictResponse()
        for name, value in signature(**inputs).items():
            if not request.output_filter or name in request.output_filter:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response


@contextmanager
def grpc_server(loaded: Any) -> Iterator[int]:
    """The gRPC service on a port of this machine."""
    server = grpc.server(ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Predict(loaded), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)
