// The scenarios of ../scenarios.json through the JavaScript SDK, over HTTP and gRPC where it has both.

const assert = require("node:assert/strict");
const { randomUUID } = require("node:crypto");
const { after, before, describe, it } = require("node:test");
const {
  CommunicationProtocolEnum,
  HttpMethod,
  StateConcurrencyEnum: { CONCURRENCY_FIRST_WRITE },
} = require("@dapr/dapr");
const { LockStatus } = require("@dapr/dapr/types/lock/UnlockResponse");
const table = require("../scenarios.json");
const { BACKEND, Stage, backend, until } = require("./stage");

/** Scenarios for which this SDK has no call. */
const NOT_IN_SDK = new Set(["async_client", "invoke_by_proxy", "subscribe_stream"]);
const STORE = "statestore";
const BOTH = ["http", "grpc"];
const APPS = ["http-app", "grpc-app"];
/** gRPC codes. */
const [INVALID_ARGUMENT, ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED, INTERNAL] = [3, 6, 9, 10, 13];

/** Scenarios for other backends than the one under test. */
const ELSEWHERE = BACKEND === "embedded" ? table.servers : table.embedded;

let stage;
const played = new Set();

/** Plays a scenario once for each variant, with an app if one is named. */
function scenario(name, variants, play, app) {
  played.add(name);
  if (name in ELSEWHERE) return;
  for (const variant of variants) {
    it(`${name} (${app ? `${variant}, ${app}` : variant})`, async () => {
      try {
        await play(variant, stage.clients[variant] ?? stage.clients.http);
      } catch (error) {
        error.message += `\n${stage.tails()}`;
        throw error;
      }
    });
  }
}

/** The error of a call, which the SDK throws or returns. */
async function failure(call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    return error.error ?? error;
  }
  assert.ok(answer?.error, `this should have failed: ${JSON.stringify(answer)}`);
  return answer.error;
}

/** An HTTP error as the SDK gives it: {status, body}. */
function httpError(error) {
  const { status, error_msg } = JSON.parse(error.message);
  return { status, body: JSON.parse(error_msg) };
}

/** Checks status and errorCode over HTTP, or the code over gRPC, and the message over both. */
function assertError(error, variant, { status, errorCode, code, message }) {
  if (variant === "http") {
    const { status: gotStatus, body } = httpError(error);
    assert.equal(gotStatus, status);
    assert.equal(body.errorCode, errorCode);
    assert.match(body.message, message);
  } else {
    assert.equal(error.code, code);
    assert.match(error.rawMessage, message);
  }
}

const newKey = () => `key-${randomUUID()}`;
/** ETag of a key; the SDK shows it in bulk reads only. */
const etagOf = async (client, key) => (await client.state.getBulk(STORE, [key]))[0].etag;
const save = (client, key, value, more = {}) => client.state.save(STORE, [{ key, value, ...more }]);

describe("a real mechad", { timeout: 300_000 }, () => {
  before(async () => {
    stage = await Stage.open();
  });
  after(() => stage?.close());

  scenario("state_save_and_get", BOTH, async (_, client) => {
    const key = newKey();
    const value = { name: "ä", list: [1, 2.5, null, "x"] };
    assert.deepEqual(await save(client, key, value), {});
    assert.deepEqual(await client.state.get(STORE, key), value);
  });

  scenario("state_get_of_a_missing_key", BOTH, async (_, client) => {
    assert.equal(await client.state.get(STORE, newKey()), "");
  });

  scenario("state_bulk", BOTH, async (_, client) => {
    const key = newKey();
    await client.state.save(
      STORE,
      Array.from({ length: 5 }, (_, i) => ({ key: `${key}-${i}`, value: { i } })),
    );
    const asked = [`${key}-4`, `${key}-none`, `${key}-0`];
    const items = await client.state.getBulk(STORE, asked);
    assert.deepEqual(
      items.map(({ key }) => key),
      asked,
    );
    assert.deepEqual(items[0].data, { i: 4 });
    assert.ok(!items[1].data);
    assert.deepEqual(items[2].data, { i: 0 });
    assert.ok(items[0].etag && items[2].etag && !items[1].etag);
  });

  scenario("state_delete", BOTH, async (_, client) => {
    const key = newKey();
    await save(client, key, "here");
    assert.deepEqual(await client.state.delete(STORE, key), {});
    assert.equal(await client.state.get(STORE, key), "");
  });

  scenario("state_etag_mismatch", BOTH, async (variant, client) => {
    const key = newKey();
    await save(client, key, "one");
    const etag = await etagOf(client, key);
    assert.deepEqual(await save(client, key, "two", { etag }), {});
    const message = /possible etag mismatch/;
    const late = await failure(() => save(client, key, "three", { etag, options: { concurrency: CONCURRENCY_FIRST_WRITE } }));
    assertError(late, variant, { status: 409, errorCode: "ERR_STATE_SAVE", code: ABORTED, message });
    const gone = await failure(() => client.state.delete(STORE, key, { etag }));
    assertError(gone, variant, { status: 409, errorCode: "ERR_STATE_DELETE", code: ABORTED, message });
    assert.equal(await client.state.get(STORE, key), "two");
  });

  scenario("state_first_write", BOTH, async (variant, client) => {
    const key = newKey();
    const options = { concurrency: CONCURRENCY_FIRST_WRITE };
    assert.deepEqual(await save(client, key, "mine", { options }), {});
    const error = await failure(() => save(client, key, "yours", { options }));
    assertError(error, variant, { status: 409, errorCode: "ERR_STATE_SAVE", code: ABORTED, message: /etag mismatch/ });
    assert.equal(await client.state.get(STORE, key), "mine");
  });

  scenario("state_transaction", BOTH, async (_, client) => {
    const key = newKey();
    await save(client, `${key}-old`, "old");
    await client.state.transaction(STORE, [
      { operation: "upsert", request: { key: `${key}-new`, value: "new" } },
      { operation: "delete", request: { key: `${key}-old` } },
    ]);
    assert.equal(await client.state.get(STORE, `${key}-new`), "new");
    assert.equal(await client.state.get(STORE, `${key}-old`), "");
  });

  scenario("state_transaction_is_atomic", BOTH, async (variant, client) => {
    const key = newKey();
    await save(client, key, "one");
    const etag = await etagOf(client, key);
    await save(client, key, "two");
    const error = await failure(() =>
      client.state.transaction(STORE, [
        { operation: "upsert", request: { key: `${key}-new`, value: "new" } },
        { operation: "upsert", request: { key, value: "three", etag } },
      ]),
    );
    const message = /error while executing state transaction: .*etag mismatch/;
    assertError(error, variant, { status: 409, errorCode: "ERR_STATE_TRANSACTION", code: ABORTED, message });
    assert.equal(await client.state.get(STORE, `${key}-new`), "");
    assert.equal(await client.state.get(STORE, key), "two");
  });

  scenario("state_ttl", BOTH, async (_, client) => {
    const key = newKey();
    await save(client, key, "brief", { metadata: { ttlInSeconds: "1" } });
    assert.equal(await client.state.get(STORE, key), "brief");
    await until(`${key} is gone`, async () => (await client.state.get(STORE, key)) === "");
  });

  scenario("state_unknown_store", BOTH, async (variant, client) => {
    const error = await failure(() => client.state.get("nowhere", "key"));
    const message = /^state store nowhere is not found$/;
    assertError(error, variant, { status: 400, errorCode: "ERR_STATE_STORE_NOT_FOUND", code: INVALID_ARGUMENT, message });
    if (variant === "http") {
      const [info] = httpError(error).body.details;
      assert.equal(info["@type"], "type.googleapis.com/google.rpc.ErrorInfo");
      assert.equal(info.reason, "DAPR_STATE_NOT_FOUND");
      assert.equal(info.domain, "dapr.io");
      assert.equal(info.metadata.appID, "tester");
    }
  });

  scenario("state_key_with_separator", BOTH, async (variant, client) => {
    const error = await failure(() => save(client, "a||b", "x"));
    const message = /input key\/keyPrefix 'a\|\|b' can't contain '\|\|'/;
    assertError(error, variant, { status: 400, errorCode: "ERR_MALFORMED_REQUEST", code: INVALID_ARGUMENT, message });
  });

  scenario("state_survives_kill", BOTH, async (variant) => {
    const key = newKey();
    const victim = await (await stage.sidecar(`victim-${variant}`)).untilReady();
    await save(victim.client(protocolOf(variant)), key, { kept: true });
    victim.process.kill("SIGKILL");
    assert.equal((await victim.end()).signal, "SIGKILL");
    const heir = await (await stage.sidecar(`victim-${variant}`)).untilReady();
    assert.deepEqual(await heir.client(protocolOf(variant)).state.get(STORE, key), { kept: true });
  });

  for (const app of APPS) {
    scenario(`publish_to_${app.replace("-", "_")}`, BOTH, async (_, client) => {
      const data = { id: randomUUID(), sum: 3 };
      assert.deepEqual(await client.pubsub.publish("pubsub", "plain", data), {});
      assert.deepEqual((await stage.received(app, "plain", data.id)).data, data);
    });

    scenario("publish_bulk", BOTH, async (_, client) => {
      const messages = Array.from({ length: 20 }, () => ({ id: randomUUID() }));
      for (const topic of ["plain", "crowd"]) {
        const entries = messages.map((event) => ({ event, contentType: "application/json" }));
        assert.deepEqual(await client.pubsub.publishBulk("pubsub", topic, entries), { failedMessages: [] });
        for (const { id } of messages) await stage.received(app, topic, id);
      }
    }, app);

    scenario("publish_cloud_event", BOTH, async (_, client) => {
      const id = randomUUID();
      const event = { specversion: "1.0", id, source: "elsewhere", type: "order.made", data: { id, from: "an event" } };
      const options = { contentType: "application/cloudevents+json" };
      assert.deepEqual(await client.pubsub.publish("pubsub", "plain", event, options), {});
      assert.deepEqual((await stage.received(app, "plain", id)).data, event.data);
    }, app);

    scenario("publish_raw", BOTH, async (_, client) => {
      const data = { id: randomUUID() };
      const options = { metadata: { rawPayload: "true" } };
      assert.deepEqual(await client.pubsub.publish("pubsub", "raw", data, options), {});
      const received = await until("the raw payload arrived", async () => {
        const events = (await stage.inbox(app)).events.raw ?? [];
        return events.map((event) => text(event.data)).find((event) => event.includes(data.id));
      });
      assert.deepEqual(JSON.parse(received), data);
    }, app);

    scenario("publish_retry", BOTH, async (_, client) => {
      const id = randomUUID();
      await client.pubsub.publish("pubsub", "flaky", { id });
      await stage.received(app, "flaky", id, 2);
    }, app);

    scenario("publish_drop", BOTH, async (_, client) => {
      const id = randomUUID();
      await client.pubsub.publish("pubsub", "poison", { id });
      await stage.received(app, "poison", id);
      await stage.received(app, "graveyard", id);
    }, app);
  }

  scenario("publish_to_declared_subscription", BOTH, async (_, client) => {
    const id = randomUUID();
    await client.pubsub.publish("pubsub", "declared", { id });
    await stage.received("http-app", "declared", id);
  });

  scenario("publish_to_rules", BOTH, async (_, client) => {
    const cases = [
      ["urgent", 1000, { "cloudevent.type": "urgent" }],
      ["large", 101, {}],
      ["other", 100, {}],
    ];
    for (const [rule, amount, metadata] of cases) {
      const id = randomUUID();
      await client.pubsub.publish("pubsub", "ruled", { id, amount }, { metadata });
      await stage.received("http-app", `ruled/${rule}`, id);
    }
  });

  scenario("publish_unknown_pubsub", BOTH, async (variant, client) => {
    const error = await failure(() => client.pubsub.publish("nowhere", "plain", {}));
    const message = /^pubsub nowhere is not found$/;
    assertError(error, variant, { status: 404, errorCode: "ERR_PUBSUB_NOT_FOUND", code: INVALID_ARGUMENT, message });
  });

  for (const app of APPS) {
    scenario(`invoke_${app.replace("-", "_")}`, BOTH, async (_, client) => {
      const answer = await client.invoker.invoke(app, "echo", HttpMethod.POST, { n: 1 });
      assert.equal(answer.app, app);
      assert.deepEqual(JSON.parse(answer.body), { n: 1 });
      assert.match(answer.contentType, /^application\/json/);
      if (app === "http-app") assert.equal(answer.caller, "tester");
    });

    scenario(`binding_input_${app.replace("-", "_")}`, ["cron"], async () => {
      const first = (await stage.inbox(app)).ticks;
      await until(`${app} gets ticks`, async () => (await stage.inbox(app)).ticks > first);
    });
  }

  scenario("invoke_error_of_app", BOTH, async (variant, client) => {
    const error = await failure(() => client.invoker.invoke("http-app", "fail", HttpMethod.POST, {}));
    if (variant === "http") assert.deepEqual(httpError(error), { status: 409, body: { reason: "sold out" } });
    else assert.equal(error.code, ALREADY_EXISTS);
  });

  scenario("invoke_unknown_app", BOTH, async (variant, client) => {
    const error = await failure(() => client.invoker.invoke("nobody", "echo", HttpMethod.POST, {}));
    const message = /failed to invoke, id: nobody, err: /;
    assertError(error, variant, { status: 500, errorCode: "ERR_DIRECT_INVOKE", code: INTERNAL, message });
  });

  scenario("binding_output", BOTH, async (variant, client) => {
    const fileName = `${randomUUID()}.txt`;
    const send = (operation, data, metadata = {}) => client.binding.send("files", operation, data, metadata);
    // Over gRPC the SDK hands out the whole answer, with its data as bytes.
    const data = (answer) => (variant === "grpc" ? Buffer.from(answer.data).toString() : text(answer));
    assert.equal(JSON.parse(data(await send("create", "a text", { fileName }))).fileName, fileName);
    assert.equal(data(await send("get", "", { fileName })), "a text");
    assert.ok(JSON.parse(data(await send("list", ""))).includes(fileName));
    await send("delete", "", { fileName });
    await failure(() => send("get", "", { fileName }));
  });

  scenario("binding_unknown", BOTH, async (variant, client) => {
    const error = await failure(() => client.binding.send("nowhere", "create", "x"));
    const message = /couldn't find output binding nowhere/;
    assertError(error, variant, { status: 500, errorCode: "ERR_INVOKE_OUTPUT_BINDING", code: INTERNAL, message });
  });

  scenario("binding_unknown_operation", BOTH, async (variant, client) => {
    const error = await failure(() => client.binding.send("files", "paint", "x"));
    const message = /binding files does not support operation paint. supported operations:.*create/;
    assertError(error, variant, { status: 400, errorCode: "ERR_INVOKE_OUTPUT_BINDING", code: INVALID_ARGUMENT, message });
  });

  scenario("secret_get", BOTH, async (_, client) => {
    assert.deepEqual({ ...(await client.secret.get("secrets", "plain")) }, { plain: "of no worth" });
    assert.deepEqual({ ...(await client.secret.get("secrets", "database:user")) }, { "database:user": "reader" });
  });

  scenario("secret_bulk", BOTH, async (variant, client) => {
    const all = await client.secret.getBulk("secrets");
    const flat = Object.entries(all).map(([name, secret]) => [name, { ...(secret.secrets ?? secret) }]);
    assert.deepEqual(Object.fromEntries(flat), {
      plain: { plain: "of no worth" },
      "database:user": { "database:user": "reader" },
      "database:password": { "database:password": "of no worth either" },
    });
  });

  scenario("secret_missing", BOTH, async (variant, client) => {
    const error = await failure(() => client.secret.get("secrets", "nothing"));
    const message = /failed getting secret with key nothing from secret store secrets/;
    assertError(error, variant, { status: 500, errorCode: "ERR_SECRET_GET", code: INTERNAL, message });
    assert.doesNotMatch(error.message, /of no worth/);
  });

  scenario("secret_unknown_store", BOTH, async (variant, client) => {
    const error = await failure(() => client.secret.get("nowhere", "plain"));
    const message = /^failed finding secret store with key nowhere$/;
    assertError(error, variant, { status: 401, errorCode: "ERR_SECRET_STORE_NOT_FOUND", code: INVALID_ARGUMENT, message });
  });

  scenario("metadata_get", BOTH, async (_, client) => {
    const metadata = await client.metadata.get();
    assert.equal(metadata.id, "tester");
    const kinds = Object.fromEntries(metadata.components.map(({ name, type }) => [name, type]));
    assert.deepEqual(kinds, backend.components);
  });

  scenario("metadata_set", BOTH, async (variant, client) => {
    assert.equal(await client.metadata.set(`colour-${variant}`, "green"), true);
    const { extended } = await client.metadata.get();
    assert.equal(extended.get?.(`colour-${variant}`) ?? extended[`colour-${variant}`], "green");
  });

  scenario("api_token", BOTH, async (variant) => {
    const daprApiToken = "a token of the test";
    const guarded = await (await stage.sidecarWith({ DAPR_API_TOKEN: daprApiToken }, `guarded-${variant}`)).untilReady();
    const save = (client) => client.state.save(STORE, [{ key: newKey(), value: "x" }]);
    const friend = guarded.client(protocolOf(variant), { daprApiToken });
    assert.deepEqual(await save(friend), {});
    // Without the token the SDK would wait for a sidecar that lets it in, so a stranger comes without the SDK.
    const stranger = await fetch(`http://127.0.0.1:${guarded.http}/v1.0/metadata`);
    assert.equal(stranger.status, 401);
    assert.equal(await stranger.text(), "invalid api token");
  });

  scenario("health", BOTH, async (_, client) => {
    assert.equal(await client.health.isHealthy(), true);
  });

  scenario("lock_not_configured", BOTH, async (variant, client) => {
    const error = await failure(() => client.lock.lock("lockstore", "resource", "owner", 10));
    const message = /^lock store is not configured$/;
    assertError(error, variant, { status: 500, errorCode: "ERR_LOCK_STORE_NOT_CONFIGURED", code: FAILED_PRECONDITION, message });
  });

  // The SDK has no configuration over HTTP.
  scenario("configuration_not_configured", ["grpc"], async (variant, client) => {
    const error = await failure(() => client.configuration.get("configstore", ["key"]));
    assertError(error, variant, { code: FAILED_PRECONDITION, message: /^configuration stores not configured$/ });
  });

  // Over HTTP the SDK sends a text as JSON, with its quotes.
  scenario("binding_of_server", ["grpc"], async () => {
    const key = newKey();
    await stage.setting("write", key, "on", "7");
    const [answer, wanted] = await stage.setting("read", key, "on", "7");
    assert.equal(answer, wanted);
  });

  scenario("configuration_get", ["grpc"], async (_, client) => {
    const key = newKey();
    await stage.setting("write", `${key}-a`, "on", "1");
    await stage.setting("write", `${key}-b`, "off", "2");
    const { items } = await client.configuration.get("configstore", [`${key}-a`, `${key}-b`, `${key}-none`]);
    const got = Object.fromEntries(Object.entries(items).map(([key, { value, version }]) => [key, [value, version]]));
    assert.deepEqual(got, { [`${key}-a`]: ["on", "1"], [`${key}-b`]: ["off", "2"] });
  });

  scenario("configuration_subscribe", ["grpc"], async (_, client) => {
    const key = newKey();
    const told = [];
    const stream = await client.configuration.subscribeWithKeys("configstore", [key], async ({ items }) => {
      told.push(items);
    });
    let version = 0;
    await until("a change is told", async () => {
      // Changes from before the watch was in place are not told.
      if (told.length === 0) await stage.setting("write", key, `value ${++version}`, String(version));
      return told.length > 0;
    });
    await stage.setting("write", key, "last", "100000");
    const { value, version: last } = await until("the last change is told", async () => {
      const item = told.at(-1)[key];
      return item?.value === "last" && item;
    });
    assert.deepEqual([value, last], ["last", "100000"]);
    assert.ok(told.every((items) => Object.keys(items).join() === key));
    await stream.stop();
  });

  scenario("configuration_unknown_store", ["grpc"], async (variant, client) => {
    const error = await failure(() => client.configuration.get("nowhere", ["key"]));
    assertError(error, variant, { code: INVALID_ARGUMENT, message: /^configuration store nowhere not found$/ });
  });

  scenario("lock_has_one_owner", BOTH, async (_, { lock }) => {
    const id = newKey();
    assert.equal((await lock.lock("lockstore", id, "first", 60)).success, true);
    assert.equal((await lock.lock("lockstore", id, "second", 60)).success, false);
    assert.equal((await lock.unlock("lockstore", id, "second")).status, LockStatus.LockBelongsToOthers);
    assert.equal((await lock.unlock("lockstore", id, "first")).status, LockStatus.Success);
    assert.equal((await lock.unlock("lockstore", id, "first")).status, LockStatus.LockDoesNotExist);
    assert.equal((await lock.lock("lockstore", id, "second", 60)).success, true);
  });

  scenario("lock_expires", BOTH, async (_, { lock }) => {
    const id = newKey();
    assert.equal((await lock.lock("lockstore", id, "first", 1)).success, true);
    await until("the lock is free", async () => (await lock.lock("lockstore", id, "second", 60)).success);
  });

  scenario("lock_unknown_store", BOTH, async (variant, client) => {
    const error = await failure(() => client.lock.lock("nowhere", "resource", "owner", 10));
    const message = /^lock store nowhere not found$/;
    assertError(error, variant, { status: 400, errorCode: "ERR_LOCK_STORE_NOT_FOUND", code: INVALID_ARGUMENT, message });
  });

  scenario("shutdown", BOTH, async (variant) => {
    const leaver = await (await stage.sidecar(`leaver-${variant}`)).untilReady();
    await leaver.client(protocolOf(variant)).sidecar.shutdown();
    assert.deepEqual(await leaver.end(), { code: 0, signal: null });
  });

  it("plays every scenario of the table", () => {
    assert.deepEqual(
      Object.values(table)
        .flatMap(Object.keys)
        .filter((name) => !NOT_IN_SDK.has(name))
        .sort(),
      [...played].sort(),
    );
  });
});

function protocolOf(variant) {
  return variant === "grpc" ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP;
}

/** What the SDK has parsed as JSON, as text again. */
function text(data) {
  return typeof data === "string" ? data : JSON.stringify(data);
}
