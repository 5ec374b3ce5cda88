// shipping hears of orders on `orders.placed` and puts the goods on the dock. A cron binding is the truck: every
// second it takes what waits there, and `orders.shipped` tells whoever wants to know.

const { createHmac, timingSafeEqual } = require("node:crypto");
const { DaprPubSubStatusEnum, DaprServer, LogLevel } = require("@dapr/dapr");
const { isReady, update } = require("../sidecar");

// Ports and addresses come from the environment that `mecha run` sets.
const server = new DaprServer({ logger: { level: LogLevel.Warn } });
const { client } = server;

const DOCK = "dock";
const EMPTY = { waiting: [], shipped: {}, tours: 0 };

/** Whether inventory really reserved these goods: both know the secret that the voucher is made with. */
function isGenuine(order, secret) {
  const expected = createHmac("sha256", secret).update(`${order.id}:${order.item}:${order.quantity}`).digest();
  const given = Buffer.from(order.voucher ?? "", "hex");
  return given.length === expected.length && timingSafeEqual(given, expected);
}

async function drive() {
  // What the truck loads stays on the dock until everybody has been told: after a crash in between it is announced
  // again, which does no harm, and never forgotten.
  let load;
  await update(client, DOCK, (dock) => {
    load = dock?.waiting ?? [];
    return undefined;
  });
  if (load.length === 0) return;
  for (const { id } of load) {
    const { error } = await client.pubsub.publish("pubsub", "orders.shipped", { id });
    if (error) throw error;
  }
  const gone = new Set(load.map(({ id }) => id));
  await update(client, DOCK, (dock) => {
    const loaded = dock.waiting.filter(({ id }) => gone.has(id));
    if (loaded.length === 0) return undefined;
    const shipped = { ...dock.shipped };
    for (const { id, item, quantity } of loaded) shipped[id] = { item, quantity };
    return { waiting: dock.waiting.filter(({ id }) => !gone.has(id)), shipped, tours: dock.tours + 1 };
  });
  console.log(`the truck left with ${load.length} orders`);
}

async function main() {
  let secret;

  await server.pubsub.subscribe("pubsub", "orders.placed", async (order) => {
    try {
      secret ??= (await client.secret.get("shop-secrets", "voucher-key"))["voucher-key"];
      if (!isGenuine(order, secret)) {
        console.error(`order ${order.id} has no genuine voucher, nothing is shipped`);
        return DaprPubSubStatusEnum.DROP;
      }
      const { id, item, quantity } = order;
      await update(client, DOCK, (dock = EMPTY) => {
        // A message may come twice; the goods leave once.
        if (dock.shipped[id] || dock.waiting.some((other) => other.id === id)) return undefined;
        return { ...dock, waiting: [...dock.waiting, { id, item, quantity }] };
      });
      return DaprPubSubStatusEnum.SUCCESS;
    } catch (error) {
      console.error(`order ${order.id} is not on the dock yet, the message comes again: ${error.message}`);
      return DaprPubSubStatusEnum.RETRY;
    }
  });

  await server.binding.receive("truck", drive);

  await server.invoker.listen("report", async () => {
    try {
      const { waiting, shipped, tours } = (await update(client, DOCK, () => undefined)) ?? EMPTY;
      return { waiting: waiting.length, shipped, tours };
    } catch (error) {
      return { reason: error.message };
    }
  });

  await server.invoker.listen("ready", async () => ({ ready: await isReady() }));

  await server.start();
  console.log("shipping is open");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
