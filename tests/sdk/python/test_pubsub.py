"""Publishing and subscribing through the SDK."""

import json
import threading
import uuid

import grpc
import pytest
from dapr.clients.exceptions import DaprGrpcError
from dapr.clients.grpc._response import TopicEventResponse
from sidecar import until

APPS = ["http-app", "grpc-app"]


@pytest.fixture
def id():
    return str(uuid.uuid4())


def publish(dapr, topic: str, data: dict, **options):
    options.setdefault("data_content_type", "application/json")
    dapr.publish_event("pubsub", topic, json.dumps(data), **options)


def arrives_in_an_envelope(stage, app_id: str, id: str):
    publish(stage.dapr, "plain", {"id": id, "sum": 3})
    event = stage.received(app_id, "plain", id)["event"]
    assert event["data"] == {"id": id, "sum": 3}
    assert event["source"] == "tester"
    assert event["type"] == "com.dapr.event.sent"
    assert event["specversion"] == "1.0"
    assert event["datacontenttype"] == "application/json"
    assert (event["pubsubname"], event["topic"]) == ("pubsub", "plain")
    assert event["id"]


def test_publish_to_http_app(stage, id):
    arrives_in_an_envelope(stage, "http-app", id)


def test_publish_to_grpc_app(stage, id):
    arrives_in_an_envelope(stage, "grpc-app", id)


def test_publish_to_declared_subscription(stage, id):
    publish(stage.dapr, "declared", {"id": id})
    stage.received("http-app", "declared", id)


def test_publish_to_rules(stage, id):
    for suffix, amount, metadata in [
        ("urgent", 1000, {"cloudevent.type": "urgent"}),
        ("large", 101, {}),
        ("other", 100, {}),
    ]:
        publish(stage.dapr, "ruled", {"id": f"{id}-{suffix}", "amount": amount}, publish_metadata=metadata)
        stage.received("http-app", f"ruled/{suffix}", f"{id}-{suffix}")


@pytest.mark.parametrize("app_id", APPS)
def test_publish_bulk(stage, id, app_id):
    ids = [f"{id}-{i}" for i in range(20)]
    answer = stage.dapr.publish_events(
        "pubsub", "plain", [json.dumps({"id": i}) for i in ids], data_content_type="application/json"
    )
    assert not answer.failed_entries
    for i in ids:
        assert stage.received(app_id, "plain", i)["event"]["data"] == {"id": i}


@pytest.mark.parametrize("app_id", APPS)
def test_publish_cloud_event(stage, id, app_id):
    event = {"specversion": "1.0", "id": id, "source": "elsewhere", "type": "order.made", "data": "free text"}
    publish(stage.dapr, "plain", event, data_content_type="application/cloudevents+json")
    got = stage.received(app_id, "plain", id)["event"]
    assert (got["id"], got["source"], got["type"], got["data"]) == (id, "elsewhere", "order.made", "free text")


def test_publish_raw(stage, id):
    publish(stage.dapr, "raw", {"raw": id}, publish_metadata={"rawPayload": "true"})

    def look():
        events = stage.inbox("grpc-app")["events"].get("raw", [])
        return [e["event"] for e in events if json.loads(e["event"]["data"]) == {"raw": id}]

    assert until("the raw payload arrived", look)[0]["datacontenttype"] == "application/octet-stream"


@pytest.mark.parametrize("app_id", APPS)
def test_publish_retry(stage, id, app_id):
    publish(stage.dapr, "flaky", {"id": id})
    stage.received(app_id, "flaky", id, times=2)


@pytest.mark.parametrize("app_id", APPS)
def test_publish_drop(stage, id, app_id):
    publish(stage.dapr, "poison", {"id": id})
    stage.received(app_id, "poison", id)
    assert stage.received(app_id, "graveyard", id)["event"]["data"] == {"id": id}


def test_publish_unknown_pubsub(dapr):
    with pytest.raises(DaprGrpcError) as error:
        dapr.publish_event("nowhere", "plain", "{}")
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "pubsub nowhere is not found"
    assert error.value.error_code() == "DAPR_PUBSUB_NOT_FOUND"


def test_subscribe_stream(dapr, id):
    seen = []
    twice = threading.Event()

    def handle(message):
        if message.data()["id"] != id:
            return TopicEventResponse("success")
        seen.append(message.data())
        if len(seen) == 1:
            return TopicEventResponse("retry")
        twice.set()
        return TopicEventResponse("success")

    close = dapr.subscribe_with_handler("pubsub", "streamed", handle)
    try:
        publish(dapr, "streamed", {"id": id})
        assert twice.wait(60), f"only {len(seen)} deliveries"
    finally:
        close()
    assert seen == [{"id": id}, {"id": id}]
