"""A gRPC app on the callback extension of the SDK. It keeps what it receives and shows it on demand."""

import json
import os
import threading

import grpc
from dapr.clients.grpc._response import TopicEventResponse
from dapr.ext.grpc import App, BindingRequest, InvokeMethodRequest, InvokeMethodResponse, SubscriptionMessage

app = App()

lock = threading.Lock()
events: dict[str, list] = {}
ticks = 0


def keep(box: str, event: SubscriptionMessage) -> int:
    """Keeps an event; returns how often its id has been seen in this box."""
    with lock:
        seen = events.setdefault(box, [])
        data = event.data() if event.data() is not None else event.raw_data().decode()
        id = data["id"] if isinstance(data, dict) and "id" in data else event.id()
        shown = {
            "id": event.id(),
            "source": event.source(),
            "type": event.type(),
            "specversion": event.spec_version(),
            "datacontenttype": event.data_content_type(),
            "topic": event.topic(),
            "pubsubname": event.pubsub_name(),
            "data": data,
        }
        seen.append({"id": id, "event": shown})
        return sum(1 for other in seen if other["id"] == id)


def reply(body) -> InvokeMethodResponse:
    return InvokeMethodResponse(json.dumps(body).encode(), "application/json")


@app.method("inbox")
def inbox(request: InvokeMethodRequest):
    with lock:
        return reply({"events": events, "ticks": ticks})


@app.method("echo")
def echo(request: InvokeMethodRequest):
    return reply({"app": os.environ["APP_ID"], "body": request.text(), "contentType": request.content_type})


@app.binding("tick")
def tick(request: BindingRequest):
    global ticks
    with lock:
        ticks += 1


@app.subscribe("pubsub", "plain")
def plain(event: SubscriptionMessage):
    keep("plain", event)


@app.subscribe("pubsub", "raw", metadata={"rawPayload": "true"})
def raw(event: SubscriptionMessage):
    keep("raw", event)


@app.subscribe("pubsub", "flaky")
def flaky(event: SubscriptionMessage):
    return TopicEventResponse("retry" if keep("flaky", event) == 1 else "success")


@app.subscribe("pubsub", "poison", dead_letter_topic="graveyard")
def poison(event: SubscriptionMessage):
    keep("poison", event)
    return TopicEventResponse("drop")


@app.subscribe("pubsub", "graveyard")
def graveyard(event: SubscriptionMessage):
    keep("graveyard", event)


def greet(request: bytes, context) -> bytes:
    context.set_trailing_metadata((("greeted-by", os.environ["APP_ID"]),))
    if request == b"nobody":
        context.abort(grpc.StatusCode.NOT_FOUND, "nobody is here")
    return b"hello " + request


def count(request: bytes, context):
    for n in range(int(request)):
        yield str(n).encode()


# A service that the SDK knows nothing of; without a codec its messages are bytes.
GREETER = {
    "Greet": grpc.unary_unary_rpc_method_handler(greet),
    "Count": grpc.unary_stream_rpc_method_handler(count),
}
app.add_external_service(
    lambda handlers, server: server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("shop.Greeter", handlers),)
    ),
    GREETER,
)
app.run(int(os.environ["APP_PORT"]), listen_address="127.0.0.1")
