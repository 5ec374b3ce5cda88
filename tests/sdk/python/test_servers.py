"""Configuration and locks, which only servers have, through the SDK."""

import queue
import uuid

import grpc
import pytest
from dapr.clients.exceptions import DaprGrpcError
from dapr.clients.grpc._response import UnlockResponseStatus
from sidecar import until


@pytest.fixture
def key():
    return f"key-{uuid.uuid4()}"


def test_binding_of_server(server, key):
    server.write(key, "on", "7")
    answer, wanted = server.invoke("read", key, "on", "7")
    assert answer == wanted


def test_configuration_get(dapr, server, key):
    server.write(f"{key}-a", "on", "1")
    server.write(f"{key}-b", "off", "2")
    items = dapr.get_configuration("configstore", [f"{key}-a", f"{key}-b", f"{key}-none"]).items
    assert {k: (item.value, item.version) for k, item in items.items()} == {
        f"{key}-a": ("on", "1"),
        f"{key}-b": ("off", "2"),
    }


def test_configuration_subscribe(dapr, server, key):
    told = queue.Queue()
    id = dapr.subscribe_configuration("configstore", [key], lambda id, answer: told.put((id, answer.items)))
    assert id
    version = 0

    def change() -> bool:
        # Changes from before the watch was in place are not told.
        nonlocal version
        version += 1
        server.write(key, f"value {version}", str(version))
        try:
            return told.get(timeout=0.5)[0] == id
        except queue.Empty:
            return False

    until("a change is told", change)
    server.write(key, "last", "1000")

    def last() -> bool:
        items = told.get(timeout=60)[1]
        assert list(items) == [key]
        return (items[key].value, items[key].version) == ("last", "1000")

    until("the last change is told", last)
    assert dapr.unsubscribe_configuration("configstore", id) is True


def test_configuration_unknown_store(dapr):
    with pytest.raises(grpc.RpcError) as error:
        dapr.get_configuration("nowhere", ["key"])
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "configuration store nowhere not found"
    assert DaprGrpcError(error.value).error_code() == "ERR_CONFIGURATION_STORE_NOT_FOUND"


def test_lock_has_one_owner(dapr, key):
    assert dapr.try_lock("lockstore", key, "first", 60).success
    assert not dapr.try_lock("lockstore", key, "second", 60).success
    assert dapr.unlock("lockstore", key, "second").status == UnlockResponseStatus.lock_belongs_to_others
    assert dapr.unlock("lockstore", key, "first").status == UnlockResponseStatus.success
    assert dapr.unlock("lockstore", key, "first").status == UnlockResponseStatus.lock_does_not_exist
    assert dapr.try_lock("lockstore", key, "second", 60).success


def test_lock_expires(dapr, key):
    assert dapr.try_lock("lockstore", key, "first", 1).success
    until("the lock is free", lambda: dapr.try_lock("lockstore", key, "second", 60).success)


def test_lock_unknown_store(dapr, key):
    with pytest.raises(grpc.RpcError) as error:
        dapr.try_lock("nowhere", key, "owner", 10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "lock store nowhere not found"
