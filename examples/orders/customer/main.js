// customer buys from the shop, all customers at once, and then checks that the books add up. Ends with status 0 if
// they do.

const { randomUUID } = require("node:crypto");
const { setTimeout: pause } = require("node:timers/promises");
const { DaprClient, HttpMethod, LogLevel } = require("@dapr/dapr");

const ORDERS = 60;
const AT_ONCE = 12;
const STOCK = { tea: 20, coffee: 200, cocoa: 39 };
/** How long anything may take before this counts as broken. */
const PATIENCE_MS = 90_000;

const client = new DaprClient({ logger: { level: LogLevel.Error } });
const call = (app, method, body) => client.invoker.invoke(app, method, HttpMethod.POST, body);

/** Asks until the answer is there; complains with the last answer or error after a while. */
async function until(what, ask) {
  const deadline = Date.now() + PATIENCE_MS;
  let last;
  for (;;) {
    try {
      const answer = await ask();
      if (answer.done) return answer;
      last = answer.now;
    } catch (error) {
      last = error.message;
    }
    if (Date.now() > deadline) {
      throw new Error(`gave up after ${PATIENCE_MS / 1000} s waiting until ${what}; the last answer was ${last}`);
    }
    await pause(100);
  }
}

async function isReady(app) {
  const { ready } = await client.invoker.invoke(app, "ready", HttpMethod.GET);
  return { done: ready, now: "not yet" };
}

/** Places all orders, some at the same time; returns each with what checkout said. */
async function shop(orders) {
  const queue = [...orders];
  const placed = [];
  const buy = async () => {
    for (let order = queue.shift(); order; order = queue.shift()) {
      placed.push({ ...order, ...(await call("checkout", "orders", order)) });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, buy));
  return placed;
}

const pieces = (orders) => orders.reduce((sum, { quantity }) => sum + quantity, 0);

async function main() {
  await client.start();

  await until("inventory answers", async () => ({ done: (await call("inventory", "restock", STOCK)).restocked }));
  await until("checkout is ready", () => isReady("checkout"));
  await until("shipping is ready", () => isReady("shipping"));
  console.log("The shop is open. On the shelves:");
  for (const [item, quantity] of Object.entries(STOCK)) console.log(`  ${item.padEnd(7)} ${quantity}`);

  const items = Object.keys(STOCK);
  const orders = Array.from({ length: ORDERS }, (_, i) => ({
    id: randomUUID(),
    item: items[i % items.length],
    quantity: 1 + (Math.floor(i / items.length) % 3),
  }));
  const before = (await call("inventory", "stock", items)).conflicts;
  const answers = await shop(orders);
  const taken = answers.filter(({ status }) => status === "placed" || status === "shipped");
  const rejected = answers.filter(({ status }) => status === "rejected");
  const failed = answers.filter((answer) => !taken.includes(answer) && !rejected.includes(answer));
  if (failed.length > 0) {
    throw new Error(`${failed.length} of ${ORDERS} orders failed, the first with: ${failed[0].reason}`);
  }
  console.log(`\n${ORDERS} orders were placed with checkout, ${AT_ONCE} at a time: ${taken.length} taken, ` +
    `${rejected.length} turned away as sold out.`);

  const { items: left, conflicts } = await call("inventory", "stock", items);
  console.log("What inventory says now:");
  for (const item of items) {
    const sold = pieces(taken.filter((order) => order.item === item));
    console.log(`  ${item.padEnd(7)} ${String(STOCK[item]).padStart(3)} before, ${String(sold).padStart(3)} sold, ` +
      `${String(left[item]).padStart(3)} left`);
    if (left[item] !== STOCK[item] - sold) throw new Error(`the stock of ${item} does not add up`);
    const least = Math.min(...rejected.filter((order) => order.item === item).map(({ quantity }) => quantity));
    if (left[item] >= least) throw new Error(`${item} was refused although there was enough`);
  }
  console.log(`  ${conflicts - before} times two orders wanted the same shelf at once: the ETag of the stock let one ` +
    "through, and the other looked again.");

  const ids = taken.map(({ id }) => id);
  await until("checkout knows every order as shipped", async () => {
    const { orders: known, reason } = await call("checkout", "status", ids);
    if (reason) throw new Error(reason);
    const open = known.filter((order) => order?.status !== "shipped").length;
    return { done: open === 0, now: `${open} orders not shipped` };
  });
  const books = await until("the dock is empty", async () => {
    const report = await client.invoker.invoke("shipping", "report", HttpMethod.GET);
    if (report.reason) throw new Error(report.reason);
    return { done: report.waiting === 0, now: `${report.waiting} orders on the dock`, ...report };
  });
  const shipped = ids.map((id) => books.shipped[id]).filter(Boolean);
  console.log(`\nshipping heard of ${taken.length} orders, found every voucher genuine, and its truck took ` +
    `${shipped.length} of them away in ${books.tours} tours.`);
  if (shipped.length !== taken.length || pieces(shipped) !== pieces(taken)) {
    throw new Error(`${pieces(taken)} pieces were sold, but ${pieces(shipped)} left the dock`);
  }
  if (rejected.some(({ id }) => books.shipped[id])) throw new Error("an order was shipped that had been turned away");
  console.log(`It adds up: ${pieces(taken)} pieces sold, ${pieces(shipped)} pieces shipped, none twice, none lost.`);
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(`The shop is broken: ${error.message}`);
    process.exit(1);
  },
);
