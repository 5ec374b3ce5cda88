// An app on the server of the SDK, over HTTP or gRPC as APP_PROTOCOL says. It keeps what it receives and shows it on
// demand.

const express = require("express");
const { CommunicationProtocolEnum, DaprPubSubStatusEnum, DaprServer, HttpMethod, LogLevel } = require("@dapr/dapr");

const { APP_ID, APP_PORT, APP_PROTOCOL, DAPR_HTTP_PORT, DAPR_GRPC_PORT } = process.env;
const overGrpc = APP_PROTOCOL === "grpc";
const http = express();
const server = new DaprServer({
  serverHost: "127.0.0.1",
  serverPort: APP_PORT,
  serverHttp: overGrpc ? undefined : http,
  communicationProtocol: overGrpc ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP,
  clientOptions: {
    daprHost: "127.0.0.1",
    daprPort: overGrpc ? DAPR_GRPC_PORT : DAPR_HTTP_PORT,
    communicationProtocol: overGrpc ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP,
  },
  logger: { level: LogLevel.Warn },
});

const events = {};
let ticks = 0;

/** Keeps an event; returns how often its id has been seen in this box. */
function keep(box, data) {
  const seen = (events[box] ??= []);
  const id = data?.id;
  seen.push({ id, data });
  return seen.filter((other) => other.id === id).length;
}

async function main() {
  const post = { method: HttpMethod.POST };
  await server.invoker.listen("inbox", async () => ({ events, ticks }), post);
  await server.invoker.listen(
    "echo",
    async ({ body, metadata, headers }) => ({
      app: APP_ID,
      body,
      contentType: metadata.contentType,
      caller: headers?.["dapr-caller-app-id"],
    }),
    post,
  );
  await server.binding.receive("tick", async () => {
    ticks++;
  });

  const keepAll = (box) => async (data) => {
    keep(box, data);
  };
  await server.pubsub.subscribe("pubsub", "plain", keepAll("plain"));
  await server.pubsub.subscribe("pubsub", "raw", keepAll("raw"), "", { rawPayload: true });
  await server.pubsub.subscribe("pubsub", "graveyard", keepAll("graveyard"));
  await server.pubsub.subscribeBulk("pubsub", "crowd", keepAll("crowd"), { maxMessagesCount: 10, maxAwaitDurationMs: 100 });
  await server.pubsub.subscribe("pubsub", "flaky", async (data) =>
    keep("flaky", data) === 1 ? DaprPubSubStatusEnum.RETRY : DaprPubSubStatusEnum.SUCCESS,
  );
  await server.pubsub.subscribeWithOptions("pubsub", "poison", {
    deadLetterTopic: "graveyard",
    callback: async (data) => {
      keep("poison", data);
      return DaprPubSubStatusEnum.DROP;
    },
  });

  if (!overGrpc) {
    // Routes of Subscription documents are the app's own.
    for (const route of ["declared", "ruled/urgent", "ruled/large", "ruled/other"]) {
      http.post(`/${route}`, (request, response) => {
        keep(route, request.body.data);
        response.end();
      });
    }
    http.post("/fail", (_request, response) => response.status(409).json({ reason: "sold out" }));
  }
  await server.start();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
