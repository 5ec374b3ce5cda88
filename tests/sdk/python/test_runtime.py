"""Secrets, metadata, health, shutdown, and what is not configured, through the SDK."""

import asyncio
import uuid

import grpc
import pytest
from dapr.aio.clients import DaprClient as AsyncDaprClient
from dapr.clients import DaprClient
from dapr.conf import settings


def test_secret_get(dapr):
    assert dapr.get_secret("secrets", "plain").secret == {"plain": "of no worth"}
    assert dapr.get_secret("secrets", "database:user").secret == {"database:user": "reader"}


def test_secret_bulk(dapr):
    assert dapr.get_bulk_secret("secrets").secrets == {
        "plain": {"plain": "of no worth"},
        "database:user": {"database:user": "reader"},
        "database:password": {"database:password": "of no worth either"},
    }


def test_secret_missing(dapr):
    with pytest.raises(grpc.RpcError) as error:
        dapr.get_secret("secrets", "nothing")
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert "failed getting secret with key nothing from secret store secrets" in error.value.details()
    assert "of no worth" not in str(error.value)


def test_secret_unknown_store(dapr):
    with pytest.raises(grpc.RpcError) as error:
        dapr.get_secret("nowhere", "plain")
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "failed finding secret store with key nowhere"


def test_metadata_get(dapr, backend):
    metadata = dapr.get_metadata()
    assert metadata.application_id == "tester"
    assert {component.name: component.type for component in metadata.registered_components} == backend["components"]


def test_metadata_set(dapr):
    dapr.set_metadata("colour", "green")
    assert dapr.get_metadata().extended_metadata["colour"] == "green"


def test_async_client(stage):
    key = f"key-{uuid.uuid4()}"

    async def save_and_get() -> bytes:
        async with AsyncDaprClient() as dapr:
            await dapr.save_state("statestore", key, "kept")
            return (await dapr.get_state("statestore", key)).data

    assert asyncio.run(save_and_get()) == b"kept"


def test_api_token(stage, monkeypatch):
    guarded = stage.place.sidecar("guarded", DAPR_API_TOKEN="a token of the test").wait_until_ready()
    with DaprClient(f"127.0.0.1:{guarded.grpc}") as dapr, pytest.raises(grpc.RpcError) as error:
        dapr.get_metadata()
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    monkeypatch.setattr(settings, "DAPR_API_TOKEN", "a token of the test")
    with DaprClient(f"127.0.0.1:{guarded.grpc}") as dapr:
        assert dapr.get_metadata().application_id == "guarded"


def test_health(stage):
    stage.dapr.wait(10)
    stage.tester.assert_alive()


def test_lock_not_configured(dapr):
    with pytest.raises(grpc.RpcError) as error:
        dapr.try_lock("lockstore", "resource", "owner", 10)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert error.value.details() == "lock store is not configured"


def test_configuration_not_configured(dapr):
    with pytest.raises(grpc.RpcError) as error:
        dapr.get_configuration("configstore", ["key"])
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert error.value.details() == "configuration stores not configured"


def test_shutdown(stage):
    leaver = stage.place.sidecar("leaver").wait_until_ready()
    with DaprClient(f"127.0.0.1:{leaver.grpc}") as dapr:
        dapr.shutdown()
    assert leaver.wait() == 0
