"""State through the SDK."""

import json
import signal
import uuid

import grpc
import pytest
from dapr.clients import DaprClient
from dapr.clients.exceptions import DaprGrpcError
from dapr.clients.grpc._request import TransactionalStateOperation, TransactionOperationType
from dapr.clients.grpc._state import Concurrency, StateItem, StateOptions
from sidecar import until

STORE = "statestore"
FIRST_WRITE = StateOptions(concurrency=Concurrency.first_write)


@pytest.fixture
def key():
    return f"key-{uuid.uuid4()}"


def test_state_save_and_get(dapr, key):
    dapr.save_state(STORE, key, b'{"sum": 9007199254740993, "name": "\xc3\xa4"}')
    state = dapr.get_state(STORE, key)
    assert state.data == b'{"sum": 9007199254740993, "name": "\xc3\xa4"}'
    assert state.etag


def test_state_get_of_a_missing_key(dapr, key):
    state = dapr.get_state(STORE, key)
    assert (state.data, state.etag) == (b"", "")


def test_state_bulk(dapr, key):
    dapr.save_bulk_state(STORE, [StateItem(key=f"{key}-{i}", value=str(i)) for i in range(5)])
    asked = [f"{key}-4", f"{key}-none", f"{key}-0"]
    items = dapr.get_bulk_state(STORE, asked).items
    assert [(item.key, item.data) for item in items] == list(zip(asked, [b"4", b"", b"0"]))
    assert items[0].etag and items[2].etag and not items[1].etag


def test_state_delete(dapr, key):
    dapr.save_state(STORE, key, "here")
    dapr.delete_state(STORE, key)
    assert dapr.get_state(STORE, key).data == b""


def test_state_etag_mismatch(dapr, key):
    dapr.save_state(STORE, key, "one")
    old = dapr.get_state(STORE, key).etag
    dapr.save_state(STORE, key, "two", etag=old)
    for write in (
        lambda: dapr.save_state(STORE, key, "three", etag=old, options=FIRST_WRITE),
        lambda: dapr.delete_state(STORE, key, etag=old),
    ):
        with pytest.raises(DaprGrpcError) as error:
            write()
        assert error.value.code() == grpc.StatusCode.ABORTED
        assert "possible etag mismatch" in error.value.details()
    assert dapr.get_state(STORE, key).data == b"two"


def test_state_first_write(dapr, key):
    dapr.save_state(STORE, key, "mine", options=FIRST_WRITE)
    with pytest.raises(DaprGrpcError) as error:
        dapr.save_state(STORE, key, "yours", options=FIRST_WRITE)
    assert error.value.code() == grpc.StatusCode.ABORTED
    assert dapr.get_state(STORE, key).data == b"mine"


def test_state_transaction(dapr, key):
    dapr.save_state(STORE, f"{key}-old", "old")
    dapr.execute_state_transaction(
        STORE,
        [
            TransactionalStateOperation(key=f"{key}-new", data="new"),
            TransactionalStateOperation(key=f"{key}-old", operation_type=TransactionOperationType.delete),
        ],
    )
    assert dapr.get_state(STORE, f"{key}-new").data == b"new"
    assert dapr.get_state(STORE, f"{key}-old").data == b""


def test_state_transaction_is_atomic(dapr, key):
    dapr.save_state(STORE, key, "one")
    old = dapr.get_state(STORE, key).etag
    dapr.save_state(STORE, key, "two")
    with pytest.raises(DaprGrpcError) as error:
        dapr.execute_state_transaction(
            STORE,
            [
                TransactionalStateOperation(key=f"{key}-new", data="new"),
                TransactionalStateOperation(key=key, data="three", etag=old),
            ],
        )
    assert error.value.code() == grpc.StatusCode.ABORTED
    assert dapr.get_state(STORE, f"{key}-new").data == b""
    assert dapr.get_state(STORE, key).data == b"two"


def test_state_ttl(dapr, key):
    dapr.save_state(STORE, key, "brief", state_metadata={"ttlInSeconds": "1"})
    assert dapr.get_state(STORE, key).data == b"brief"
    until(f"{key} is gone", lambda: dapr.get_state(STORE, key).data == b"")


def test_state_unknown_store(dapr, key):
    with pytest.raises(DaprGrpcError) as error:
        dapr.get_state("nowhere", key)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "state store nowhere is not found"
    assert error.value.error_code() == "DAPR_STATE_NOT_FOUND"


def test_state_key_with_separator(dapr):
    with pytest.raises(DaprGrpcError) as error:
        dapr.save_state(STORE, "a||b", "x")
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.error_code() == "DAPR_STATE_ILLEGAL_KEY"
    assert error.value.status_details().bad_request


def test_state_survives_kill(stage, key):
    victim = stage.place.sidecar("victim").wait_until_ready()
    with DaprClient(f"127.0.0.1:{victim.grpc}") as dapr:
        dapr.save_state(STORE, key, json.dumps({"kept": True}))
    victim.process.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    heir = stage.place.sidecar("victim").wait_until_ready()
    with DaprClient(f"127.0.0.1:{heir.grpc}") as dapr:
        assert json.loads(dapr.get_state(STORE, key).data) == {"kept": True}
