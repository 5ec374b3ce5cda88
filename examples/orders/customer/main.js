// customer buys from the shop, all customers at once, and then checks that the books add up. Ends with status 0 if
// they do.

const { randomUUID } = require("node:crypto");
const { DaprClient, LogLevel } = require("@dapr/dapr");
const { caller, opened, shipped: shippedOf } = require("./calls");

const ORDERS = 60;
const AT_ONCE = 12;
const STOCK = { tea: 20, coffee: 200, cocoa: 39 };

const client = new DaprClient({ logger: { level: LogLevel.Error } });
const shopfront = caller(client);
const { call } = shopfront;

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

  await opened(shopfront, STOCK);
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
  const books = await shippedOf(shopfront, ids);
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
