// How customers talk to the shop.

const { setTimeout: pause } = require("node:timers/promises");
const { HttpMethod } = require("@dapr/dapr");

/** How long anything may take before this counts as broken. */
const PATIENCE_MS = 90_000;

/** Calls of methods of other apps through the sidecar of `client`. */
function caller(client) {
  const call = (app, method, body) => client.invoker.invoke(app, method, HttpMethod.POST, body);
  const read = (app, method) => client.invoker.invoke(app, method, HttpMethod.GET);
  return { call, read };
}

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

/** Waits until every app of the shop serves, with these goods on the shelves. */
async function opened({ call, read }, stock) {
  const isReady = async (app) => ({ done: (await read(app, "ready")).ready, now: "not yet" });
  await until("inventory answers", async () => ({ done: (await call("inventory", "restock", stock)).restocked }));
  await until("checkout is ready", () => isReady("checkout"));
  await until("shipping is ready", () => isReady("shipping"));
}

/** Waits until checkout knows these orders as shipped and the dock is empty; returns the books of shipping. */
async function shipped({ call, read }, ids) {
  await until("checkout knows every order as shipped", async () => {
    const { orders: known, reason } = await call("checkout", "status", ids);
    if (reason) throw new Error(reason);
    const open = known.filter((order) => order?.status !== "shipped").length;
    return { done: open === 0, now: `${open} orders not shipped` };
  });
  return until("the dock is empty", async () => {
    const report = await read("shipping", "report");
    if (report.reason) throw new Error(report.reason);
    return { done: report.waiting === 0, now: `${report.waiting} orders on the dock`, ...report };
  });
}

module.exports = { caller, opened, shipped };
