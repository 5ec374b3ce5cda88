// Starts real sidecars and apps in a folder of their own, and ends them all.

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const { setTimeout: pause } = require("node:timers/promises");
const { CommunicationProtocolEnum, DaprClient, HttpMethod, LogLevel } = require("@dapr/dapr");

const RESOURCES = path.join(__dirname, "..", "resources");
/** What stands behind the components: a folder of RESOURCES. */
const BACKEND = process.env.MECHA_SDK_BACKEND ?? "embedded";
/** What backend.json says of it. */
const backend = JSON.parse(fs.readFileSync(path.join(RESOURCES, BACKEND, "backend.json"), "utf8"));
/** Generous: reached only when something is broken. */
const DEADLINE_MS = 60_000;
/** How long something that was asked to stop may take. */
const GRACE_MS = 15_000;

/** Asks until the answer is true, and returns it. */
async function until(what, ask) {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > deadline) throw new Error(`${what}: not within ${DEADLINE_MS / 1000} s`);
    await pause(20);
  }
}

/** From a range that is nobody else's: the system gives away others again as soon as they are free. */
let nextPort = Number(process.env.MECHA_SDK_PORTS ?? 0);

/** A port that nobody listens on. */
async function freePort() {
  for (;;) {
    const server = net.createServer();
    const port = await new Promise((resolve, reject) => {
      server.once("error", (error) => (error.code === "EADDRINUSE" && nextPort ? resolve() : reject(error)));
      server.listen(nextPort && nextPort++, "127.0.0.1", () => resolve(server.address().port));
    });
    if (!port) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}

/** Ports that nobody listens on, all different. */
async function freePorts(count) {
  const ports = new Set();
  while (ports.size < count) ports.add(await freePort());
  return [...ports];
}

/** A process whose output goes to a log file. */
class Child {
  constructor(folder, name, command, args, env) {
    this.name = name;
    this.log = path.join(folder, `${name}.log`);
    const log = fs.openSync(this.log, "a");
    this.process = spawn(command, args, { cwd: folder, env, stdio: ["ignore", log, log] });
    fs.closeSync(log);
    this.ended = new Promise((resolve) => {
      this.process.once("exit", (code, signal) => resolve({ code, signal }));
      this.process.once("error", (error) => resolve({ error }));
    });
  }

  get alive() {
    return this.process.pid !== undefined && this.process.exitCode === null && this.process.signalCode === null;
  }

  tail() {
    const lines = fs.readFileSync(this.log, "utf8").trimEnd().split("\n").slice(-30);
    return `--- the end of ${this.log} ---\n${lines.join("\n")}`;
  }

  /** Waits for its end. */
  async end() {
    const late = pause(DEADLINE_MS, undefined, { ref: false }).then(() => {
      throw new Error(`${this.name} does not end\n${this.tail()}`);
    });
    return Promise.race([this.ended, late]);
  }

  async close() {
    if (!this.alive) return;
    this.process.kill("SIGTERM");
    const kill = setTimeout(() => this.process.kill("SIGKILL"), GRACE_MS);
    await this.ended;
    clearTimeout(kill);
  }
}

/** A mechad, started as `mecha run` starts it. */
class Sidecar extends Child {
  constructor(folder, env, appId, [http, grpc, internal, metrics], flags) {
    super(
      folder,
      appId,
      process.env.MECHAD,
      [
        ...["--mecha-strict", "--app-id", appId, "--resources-path", `${RESOURCES}/common,${RESOURCES}/${BACKEND}`],
        ...["--dapr-http-port", http, "--dapr-grpc-port", grpc],
        ...["--dapr-internal-grpc-port", internal, "--metrics-port", metrics],
        ...flags,
      ].map(String),
      {
        ...env,
        MECHA_HOME: path.join(folder, "home"),
        MECHA_NAME_REGISTRY: path.join(folder, "names.db"),
        DAPR_HOST_IP: "127.0.0.1",
      },
    );
    Object.assign(this, { appId, http, grpc, clients: [] });
  }

  async untilReady() {
    await until(`${this.name} is ready`, async () => {
      if (!this.alive) throw new Error(`${this.name} has ended\n${this.tail()}`);
      const answer = await fetch(`http://127.0.0.1:${this.http}/v1.0/healthz`).catch(() => undefined);
      return answer?.status === 204;
    });
    return this;
  }

  /** An SDK client of this sidecar. */
  client(protocol, more = {}) {
    const client = new DaprClient({
      ...more,
      daprHost: "127.0.0.1",
      daprPort: String(protocol === CommunicationProtocolEnum.GRPC ? this.grpc : this.http),
      communicationProtocol: protocol,
      // What the SDK would log are the errors that the tests look at.
      logger: { level: LogLevel.Error, service: { error() {}, warn() {}, info() {}, verbose() {}, debug() {} } },
    });
    this.clients.push(client);
    return client;
  }

  async close() {
    await Promise.all(this.clients.map((client) => client.stop()));
    await super.close();
  }
}

/** An HTTP app, a gRPC app and a tester, each with a sidecar of its own. */
class Stage {
  static async open() {
    const stage = new Stage();
    try {
      await stage.start();
    } catch (error) {
      await stage.close();
      throw error;
    }
    return stage;
  }

  async start() {
    this.folder = fs.mkdtempSync(path.join(os.tmpdir(), "mecha-sdk-"));
    this.children = [];
    fs.mkdirSync(path.join(this.folder, "files"));
    fs.copyFileSync(path.join(RESOURCES, "secrets.json"), path.join(this.folder, "secrets.json"));
    this.env = Object.fromEntries(Object.entries(process.env).filter(([key]) => !/^(DAPR_|OTEL_|MECHA|NODE_TEST)/.test(key)));
    const [httpPort, grpcPort] = await freePorts(2);
    const http = await this.sidecar("http-app", "--app-port", httpPort);
    const grpc = await this.sidecar("grpc-app", "--app-port", grpcPort, "--app-protocol", "grpc");
    this.tester = await this.sidecar("tester");
    this.app(http, httpPort, "http");
    this.app(grpc, grpcPort, "grpc");
    await Promise.all([http, grpc, this.tester].map((sidecar) => sidecar.untilReady()));
    this.clients = {
      http: this.tester.client(CommunicationProtocolEnum.HTTP),
      grpc: this.tester.client(CommunicationProtocolEnum.GRPC),
    };
  }

  async sidecar(appId, ...flags) {
    return this.sidecarWith({}, appId, ...flags);
  }

  /** A sidecar with variables of its own. */
  async sidecarWith(env, appId, ...flags) {
    const sidecar = new Sidecar(this.folder, { ...this.env, ...env }, appId, await freePorts(4), flags);
    this.children.push(sidecar);
    return sidecar;
  }

  app(sidecar, port, protocol) {
    const env = {
      ...this.env,
      APP_ID: sidecar.appId,
      APP_PORT: String(port),
      APP_PROTOCOL: protocol,
      DAPR_HTTP_PORT: String(sidecar.http),
      DAPR_GRPC_PORT: String(sidecar.grpc),
    };
    const args = [path.join(__dirname, "app.js")];
    this.children.push(new Child(this.folder, `${sidecar.appId}.app`, process.execPath, args, env));
  }

  /** Writes or reads configuration through the binding of its server; the answer, and what it has to be. */
  async setting(what, key, value, version) {
    const fill = (text = "") => text.replaceAll("{key}", key).replaceAll("{value}", value).replaceAll("{version}", version);
    const { operation, data, metadata, answer } = backend[what];
    const filled = Object.fromEntries(Object.entries(metadata).map(([name, text]) => [name, fill(text)]));
    const { data: bytes } = await this.clients.grpc.binding.send("settings", operation, fill(data), filled);
    return [Buffer.from(bytes).toString(), fill(answer)];
  }

  /** What an app has received so far: {events: {box: [{id, data}]}, ticks}. */
  inbox(appId) {
    return this.clients.http.invoker.invoke(appId, "inbox", HttpMethod.POST, {});
  }

  /** Waits until an app has received an event of this id that often; returns the last of them. */
  received(appId, box, id, times = 1) {
    return until(`${appId} has ${box} ${id}`, async () => {
      const events = ((await this.inbox(appId)).events[box] ?? []).filter((event) => event.id === id);
      return events.length >= times ? events.at(-1) : undefined;
    });
  }

  /** What the sidecars and apps said last. */
  tails() {
    return this.children.map((child) => child.tail()).join("\n");
  }

  async close() {
    for (const child of this.children.reverse()) await child.close();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }
}

module.exports = { BACKEND, Stage, backend, until };
