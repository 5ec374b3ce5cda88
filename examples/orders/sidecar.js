// What the JavaScript apps share: changes to state that no race can lose, and whether the sidecar is all set.

const { StateConcurrencyEnum } = require("@dapr/dapr");

const STORE = "statestore";
const ATTEMPTS = 100;

/** The HTTP status in an error of the SDK, if it has one. */
function statusOf(error) {
  try {
    return JSON.parse(error.message).status;
  } catch {
    return undefined;
  }
}

/** The last change of each key that is under way here. */
const turns = new Map();

/**
 * Changes the value of a key: reads it with its ETag, and saves what `change` makes of it only if nobody saved in
 * between; else starts over. A `change` that returns undefined changes nothing. Returns the value that is stored.
 *
 * Changes by this process take turns; the ETag settles races with everybody else.
 */
function update(client, key, change) {
  const result = (turns.get(key) ?? Promise.resolve()).then(() => compareAndSave(client, key, change));
  const done = result.then(
    () => {},
    () => {},
  );
  turns.set(key, done);
  done.then(() => {
    if (turns.get(key) === done) turns.delete(key);
  });
  return result;
}

async function compareAndSave(client, key, change) {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const [item] = await client.state.getBulk(STORE, [key]);
    if (item.error) throw new Error(`cannot read ${key}: ${item.error}`);
    const before = item.data ?? undefined;
    const value = change(before);
    if (value === undefined) return before;
    const { error } = await client.state.save(STORE, [
      { key, value, etag: item.etag, options: { concurrency: StateConcurrencyEnum.CONCURRENCY_FIRST_WRITE } },
    ]);
    if (!error) return value;
    if (statusOf(error) !== 409) throw error;
  }
  throw new Error(`${key} was changed by others ${ATTEMPTS} times in a row`);
}

/** Whether the sidecar of this app is all set, subscriptions too; it serves calls before that. */
async function isReady() {
  const answer = await fetch(`${process.env.DAPR_HTTP_ENDPOINT}/v1.0/healthz`).catch(() => undefined);
  return answer?.ok ?? false;
}

module.exports = { STORE, isReady, update };
