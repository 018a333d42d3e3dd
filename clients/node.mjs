// Starts and ends a node, or the whole loop with its API: a process of its own, in a temporary folder.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const START_WAIT_MS = 60_000;
const STOP_WAIT_MS = 20_000;

function binary() {
  const target = process.env.CARGO_TARGET_DIR ?? join(import.meta.dirname, "..", "target");
  const path = process.env.OPENLEDGER_BIN ?? join(target, "release", "openledger");
  if (!existsSync(path)) throw new Error(`${path} is missing: cargo build --release, or set OPENLEDGER_BIN`);
  return path;
}

/** A running node: its addresses, what it logged, and `stop()`. `options` are those of `openledger node run`. */
export async function startNode(...options) {
  const { line, ...running } = await start(["--json", "node", "run", "--dev", "--port", "0", ...options]);
  const { rpc, ws } = JSON.parse(line);
  return { http: rpc, ws, ...running };
}

/** The running loop of `openledger up`: address and key of its API, names of its models. */
export async function startApi() {
  const { line, dir, ...running } = await start(["up", "--api-port", "0", "--rpc-port", "0"]);
  const [, api, models] = /^ready {2}api (\S+) {2}rpc \S+ {2}models (.+)$/.exec(line) ?? [];
  if (!api) throw new Error(`the server said ${JSON.stringify(line)}`);
  const key = readFileSync(join(dir, "dev-api-key"), "utf8").trim();
  return { api, key, models: models.split(", "), ...running };
}

/** A process of the program, once it has written its first line. */
async function start(args) {
  const dir = mkdtempSync(join(tmpdir(), "openledger-clients-"));
  const child = spawn(binary(), ["--dir", dir, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  // However this program ends, the node ends with it.
  const kill = () => child.kill("SIGKILL");
  process.once("exit", kill);
  let log = "";
  child.stderr.on("data", (text) => (log += text));
  const ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve(signal ?? code)));
  const stop = async () => {
    child.kill("SIGTERM");
    const timer = setTimeout(kill, STOP_WAIT_MS);
    const how = await ended;
    clearTimeout(timer);
    process.off("exit", kill);
    rmSync(dir, { recursive: true, force: true });
    if (how !== 0) throw new Error(`the node did not stop cleanly: ${how}`);
  };
  let timer;
  const started = new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once("line", resolve);
    child.once("error", reject);
    ended.then((how) => reject(new Error(`the node ended at its start: ${how}`)));
    timer = setTimeout(() => reject(new Error("the node did not say that it is ready")), START_WAIT_MS);
  });
  try {
    return { line: await started, dir, log: () => log, stop };
  } catch (error) {
    await stop().catch(() => {});
    throw new Error(`${error.message}\n${log}`);
  } finally {
    clearTimeout(timer);
  }
}
