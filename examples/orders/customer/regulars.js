// regulars are customers who come all day: they order without a pause until they are told to stop, and count what
// becomes of each order, by the name of the time of day that somebody tells them. They are an app of their own, so that
// the script can talk to them: `mecha invoke --app-id regulars --method tally --verb GET`.

const { randomUUID } = require("node:crypto");
const { setTimeout: pause } = require("node:timers/promises");
const { DaprServer, HttpMethod, LogLevel } = require("@dapr/dapr");
const { caller, opened, shipped } = require("./calls");

const AT_ONCE = 4;
/** A breath between two orders of one customer. */
const BREATH_MS = 100;
const STOCK = { tea: 1_000_000 };

const server = new DaprServer({ logger: { level: LogLevel.Warn } });
const shopfront = caller(server.client);

let time = "before";
let closing = false;
let customers;
const failures = [];
/** Ids of the orders that were taken, by time of day. */
const taken = {};

async function visit() {
  while (!closing) {
    const [id, begun] = [randomUUID(), time];
    try {
      const { status, reason } = await shopfront.call("checkout", "orders", { id, item: "tea", quantity: 1 });
      if (status !== "placed" && status !== "shipped") throw new Error(reason ?? `status ${status}`);
      (taken[begun] ??= []).push(id);
    } catch (error) {
      failures.push(error.message);
    }
    await pause(BREATH_MS);
  }
}

function tally() {
  const counts = Object.entries(taken).map(([name, ids]) => [name, ids.length]);
  return { orders: Object.fromEntries(counts), failed: failures.length, reason: failures[0] ?? "" };
}

/** Ends the ordering, waits for the last parcel, and compares the books. */
async function settle() {
  closing = true;
  await customers;
  const ids = Object.values(taken).flat();
  const books = await shipped(shopfront, ids);
  const lost = ids.filter((id) => !books.shipped[id]).length;
  // Inventory sold what was reserved, once for each order.
  const { items } = await shopfront.call("inventory", "stock", ["tea"]);
  return { ...tally(), lost, twice: STOCK.tea - items.tea - ids.length };
}

async function main() {
  const answers = (method, verb, answer) =>
    server.invoker.listen(
      method,
      async ({ body }) => {
        try {
          return await answer(body);
        } catch (error) {
          return { reason: error.message };
        }
      },
      { method: verb },
    );
  await answers("tally", HttpMethod.GET, tally);
  await answers("time", HttpMethod.POST, (body) => {
    time = JSON.parse(body).now;
    return tally();
  });
  await answers("settle", HttpMethod.POST, settle);
  await server.start();
  await opened(shopfront, STOCK);
  console.log("regulars are in the shop");
  customers = Promise.all(Array.from({ length: AT_ONCE }, visit));
}

main().catch((error) => {
  console.error(`The shop is broken: ${error.message}`);
  process.exit(1);
});
