"""Invocation and bindings through the SDK."""

import json
import uuid

import grpc
import pytest
from dapr.clients.exceptions import DaprGrpcError, DaprInternalError
from sidecar import until


@pytest.fixture(params=["http", "grpc"])
def invoker(stage, request):
    """The two ways in which the SDK invokes."""
    return stage.http_invoker if request.param == "http" else stage.dapr


def echo(invoker, app_id: str) -> dict:
    answer = invoker.invoke_method(
        app_id, "echo", json.dumps({"n": 1}), content_type="application/json", http_verb="POST"
    )
    return json.loads(answer.data)


def test_invoke_http_app(invoker):
    answer = echo(invoker, "http-app")
    assert (answer["app"], json.loads(answer["body"])) == ("http-app", {"n": 1})
    assert answer["contentType"].startswith("application/json")
    assert answer["caller"] == "tester"


def test_invoke_grpc_app(invoker):
    answer = echo(invoker, "grpc-app")
    assert (answer["app"], json.loads(answer["body"])) == ("grpc-app", {"n": 1})
    assert answer["contentType"].startswith("application/json")


def test_invoke_error_of_app(stage):
    with pytest.raises(DaprInternalError) as error:
        stage.http_invoker.invoke_method("http-app", "fail", b"{}", http_verb="POST")
    assert error.value.status_code == 409
    assert json.loads(error.value.raw_response_bytes) == {"reason": "sold out"}
    with pytest.raises(grpc.RpcError) as error:
        stage.dapr.invoke_method("http-app", "fail", b"{}", http_verb="POST")
    assert error.value.code() == grpc.StatusCode.ALREADY_EXISTS


def test_invoke_unknown_app(stage):
    with pytest.raises(DaprInternalError) as error:
        stage.http_invoker.invoke_method("nobody", "echo", b"{}", http_verb="POST")
    assert error.value.error_code == "ERR_DIRECT_INVOKE"
    assert "nobody" in error.value.message
    with pytest.raises(grpc.RpcError) as error:
        stage.dapr.invoke_method("nobody", "echo", b"{}", http_verb="POST")
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert "nobody" in error.value.details()


def test_invoke_by_proxy(stage):
    target = (("dapr-app-id", "grpc-app"),)
    with grpc.insecure_channel(f"127.0.0.1:{stage.tester.grpc}") as channel:
        greet = channel.unary_unary("/shop.Greeter/Greet")
        answer, call = greet.with_call(b"world", metadata=target, timeout=30)
        assert answer == b"hello world"
        assert dict(call.trailing_metadata())["greeted-by"] == "grpc-app"
        with pytest.raises(grpc.RpcError) as error:
            greet(b"nobody", metadata=target, timeout=30)
        assert (error.value.code(), error.value.details()) == (grpc.StatusCode.NOT_FOUND, "nobody is here")
        count = channel.unary_stream("/shop.Greeter/Count")
        stream = count(b"1000", metadata=(*target, ("dapr-stream", "true")), timeout=30)
        assert [int(n) for n in stream] == list(range(1000))


def test_binding_output(dapr):
    name = f"{uuid.uuid4()}.txt"
    made = dapr.invoke_binding("files", "create", "a text", {"fileName": name})
    assert json.loads(made.data)["fileName"] == name
    assert dapr.invoke_binding("files", "get", "", {"fileName": name}).data == b"a text"
    assert name in json.loads(dapr.invoke_binding("files", "list", "").data)
    dapr.invoke_binding("files", "delete", "", {"fileName": name})
    with pytest.raises(grpc.RpcError) as error:
        dapr.invoke_binding("files", "get", "", {"fileName": name})
    assert "error invoking output binding files" in error.value.details()


def test_binding_input_http_app(stage):
    ticks_go_on(stage, "http-app")


def test_binding_input_grpc_app(stage):
    ticks_go_on(stage, "grpc-app")


def ticks_go_on(stage, app_id: str):
    first = stage.inbox(app_id)["ticks"]
    until(f"{app_id} gets ticks", lambda: stage.inbox(app_id)["ticks"] > first)


def test_binding_unknown(dapr):
    with pytest.raises(grpc.RpcError) as error:
        dapr.invoke_binding("nowhere", "create", "x")
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert "couldn't find output binding nowhere" in error.value.details()
    assert DaprGrpcError(error.value).error_code() == "ERR_INVOKE_OUTPUT_BINDING"


def test_binding_unknown_operation(dapr):
    with pytest.raises(grpc.RpcError) as error:
        dapr.invoke_binding("files", "paint", "x")
    assert "binding files does not support operation paint" in error.value.details()
    assert "create" in error.value.details()
