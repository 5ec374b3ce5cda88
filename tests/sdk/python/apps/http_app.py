"""An HTTP app on the FastAPI extension of the SDK. It keeps what it receives and shows it on demand."""

import os
import threading

import uvicorn
from dapr.ext.fastapi import DaprApp
from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
dapr = DaprApp(app)

lock = threading.Lock()
events: dict[str, list] = {}
ticks = 0


def keep(box: str, event: dict) -> int:
    """Keeps an event; returns how often its id has been seen in this box."""
    with lock:
        seen = events.setdefault(box, [])
        data = event.get("data")
        id = data["id"] if isinstance(data, dict) and "id" in data else event["id"]
        seen.append({"id": id, "event": event})
        return sum(1 for other in seen if other["id"] == id)


@app.post("/inbox")
def inbox():
    with lock:
        # Written here: what is received meanwhile would change it.
        return JSONResponse({"events": events, "ticks": ticks})


@app.post("/echo")
async def echo(request: Request):
    return {
        "app": os.environ["APP_ID"],
        "body": (await request.body()).decode(),
        "contentType": request.headers.get("content-type"),
        "query": request.url.query,
        "caller": request.headers.get("dapr-caller-app-id"),
    }


@app.post("/fail")
def fail():
    return JSONResponse({"reason": "sold out"}, status_code=409)


@app.options("/tick")
def offers_tick():
    return {}


@app.post("/tick")
def tick():
    global ticks
    with lock:
        ticks += 1


@dapr.subscribe("pubsub", "plain")
def plain(event=Body()):
    keep("plain", event)


@dapr.subscribe("pubsub", "raw", metadata={"rawPayload": "true"})
def raw(event=Body()):
    keep("raw", event)


@dapr.subscribe("pubsub", "flaky")
def flaky(event=Body()):
    return {"status": "RETRY" if keep("flaky", event) == 1 else "SUCCESS"}


@dapr.subscribe("pubsub", "poison", dead_letter_topic="graveyard")
def poison(event=Body()):
    keep("poison", event)
    return {"status": "DROP"}


@dapr.subscribe("pubsub", "graveyard")
def graveyard(event=Body()):
    keep("graveyard", event)


@app.post("/declared")
def declared(event=Body()):
    keep("declared", event)


@app.post("/ruled/{rule}")
def ruled(rule: str, event=Body()):
    keep(f"ruled/{rule}", event)


uvicorn.run(app, host="127.0.0.1", port=int(os.environ["APP_PORT"]), log_level="warning")
