// checkout takes orders: it has inventory reserve the goods, remembers the order and announces it on `orders.placed`.
// When `orders.shipped` says that the goods are on their way, it marks the order.

const { DaprPubSubStatusEnum, DaprServer, HttpMethod, LogLevel } = require("@dapr/dapr");
const { STORE, isReady, update } = require("../sidecar");

// Ports and addresses come from the environment that `mecha run` sets.
const server = new DaprServer({ logger: { level: LogLevel.Warn } });
const { client } = server;

const keyOf = (id) => `order-${id}`;

async function place({ id, item, quantity }) {
  if (typeof id !== "string" || typeof item !== "string" || !Number.isInteger(quantity) || quantity < 1) {
    return { status: "refused", reason: "an order has an id, an item and a quantity of at least 1" };
  }
  const order = { id, item, quantity };
  const answer = await client.invoker.invoke("inventory", "reserve", HttpMethod.POST, order);
  if (!answer.reserved) {
    return update(client, keyOf(id), (before) => before ?? { ...order, status: "rejected", reason: answer.reason });
  }
  // An order that is placed twice stays one order, and one that is on its way stays so.
  const placed = await update(client, keyOf(id), (before) =>
    before?.status === "shipped" ? undefined : { ...order, status: "placed" },
  );
  const { error } = await client.pubsub.publish("pubsub", "orders.placed", { ...order, voucher: answer.voucher });
  if (error) throw error;
  return placed;
}

async function main() {
  await server.invoker.listen(
    "orders",
    async ({ body }) => {
      try {
        return await place(JSON.parse(body));
      } catch (error) {
        console.error(`an order failed: ${error.message}`);
        return { status: "failed", reason: error.message };
      }
    },
    { method: HttpMethod.POST },
  );

  await server.invoker.listen(
    "status",
    async ({ body }) => {
      try {
        const items = await client.state.getBulk(STORE, JSON.parse(body).map(keyOf));
        return { orders: items.map((item) => item.data ?? null) };
      } catch (error) {
        return { reason: error.message };
      }
    },
    { method: HttpMethod.POST },
  );

  await server.invoker.listen("ready", async () => ({ ready: await isReady() }));

  await server.pubsub.subscribe("pubsub", "orders.shipped", async ({ id }) => {
    try {
      await update(client, keyOf(id), (order) =>
        order && order.status !== "shipped" ? { ...order, status: "shipped" } : undefined,
      );
      return DaprPubSubStatusEnum.SUCCESS;
    } catch (error) {
      console.error(`order ${id} was not marked as shipped, the message comes again: ${error.message}`);
      return DaprPubSubStatusEnum.RETRY;
    }
  });

  await server.start();
  console.log("checkout is open");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
