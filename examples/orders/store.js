// What the JavaScript apps share: changes to state that get lost neither in a race nor in a crash.

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

/**
 * Changes the value of a key: reads it with its ETag, and saves what `change` makes of it only if nobody saved in
 * between; else starts over. A `change` that returns undefined changes nothing. Returns the value that is stored.
 */
async function update(client, key, change) {
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

module.exports = { STORE, update };
