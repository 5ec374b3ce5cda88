"""inventory knows how much of what there is, and never promises the same piece twice.

Many orders come at once. Each reads the stock with its ETag and takes its share in a transaction that only goes
through if nobody changed the stock in between; who lost the race starts over with the new figures.
"""

import hashlib
import hmac
import json
import os
import sys
import threading

import grpc
from dapr.clients import DaprClient
from dapr.clients.exceptions import DaprGrpcError
from dapr.clients.grpc._request import TransactionalStateOperation
from dapr.ext.grpc import App, InvokeMethodRequest, InvokeMethodResponse

STORE = "statestore"
ATTEMPTS = 100

app = App()
# Finds its sidecar through the environment that `mecha run` sets.
dapr = DaprClient()
secret = dapr.get_secret("shop-secrets", "voucher-key").secret["voucher-key"].encode()

conflicts = 0
conflicts_lock = threading.Lock()


def reply(body: dict) -> InvokeMethodResponse:
    return InvokeMethodResponse(json.dumps(body).encode(), "application/json")


def lost_the_race(error: DaprGrpcError) -> bool:
    """Whether somebody else saved first; that is counted, as the shop likes to boast of it."""
    if error.code() != grpc.StatusCode.ABORTED:
        return False
    global conflicts
    with conflicts_lock:
        conflicts += 1
    return True


def voucher(order: str, item: str, quantity: int) -> str:
    """Proof for shipping that these goods are reserved."""
    return hmac.new(secret, f"{order}:{item}:{quantity}".encode(), hashlib.sha256).hexdigest()


@app.method("restock")
def restock(request: InvokeMethodRequest) -> InvokeMethodResponse:
    """Sets the stock of each item: {item: quantity}."""
    for item, quantity in json.loads(request.text()).items():
        dapr.save_state(STORE, f"stock-{item}", json.dumps(quantity))
    return reply({"restocked": True})


@app.method("stock")
def stock(request: InvokeMethodRequest) -> InvokeMethodResponse:
    """The stock of the items asked for: [item]."""
    items = {item: read_stock(item)[0] for item in json.loads(request.text())}
    return reply({"items": items, "conflicts": conflicts})


@app.method("reserve")
def reserve(request: InvokeMethodRequest) -> InvokeMethodResponse:
    """Takes {quantity} of {item} off the stock for the order {id}; for the same order once only."""
    order = json.loads(request.text())
    id, item, quantity = order["id"], order["item"], order["quantity"]
    granted = {"reserved": True, "voucher": voucher(id, item, quantity)}
    for _ in range(ATTEMPTS):
        if dapr.get_state(STORE, f"reservation-{id}").data:
            return reply(granted)
        left, etag = read_stock(item)
        if left < quantity:
            return reply({"reserved": False, "reason": f"only {left} of {item} left"})
        try:
            dapr.execute_state_transaction(
                STORE,
                operations=[
                    TransactionalStateOperation(key=f"stock-{item}", data=json.dumps(left - quantity), etag=etag),
                    TransactionalStateOperation(key=f"reservation-{id}", data=json.dumps(order)),
                ],
            )
            return reply(granted)
        except DaprGrpcError as error:
            if not lost_the_race(error):
                raise
    raise RuntimeError(f"the stock of {item} was changed by others {ATTEMPTS} times in a row")


def read_stock(item: str) -> tuple[int, str]:
    state = dapr.get_state(STORE, f"stock-{item}")
    return (json.loads(state.data), state.etag) if state.data else (0, "")


if __name__ == "__main__":
    print("inventory is open")
    try:
        app.run(int(os.environ["APP_PORT"]), listen_address="127.0.0.1")
    except KeyboardInterrupt:
        sys.exit(0)
