// Drives real client programs against a node and against the API, and keeps the table of docs/rpc.md that says which
// methods each called.
//
//   node clients/run.mjs             all clients; fails if one does, or if the table is stale
//   node clients/run.mjs --update    the same, and rewrites the table
//   node clients/run.mjs viem        one client, without the table
import { build } from "./build.mjs";
import { startApi, startNode } from "./node.mjs";
import { startProxy } from "./proxy.mjs";
import { checkTable, updateTable } from "./table.mjs";

const CLIENTS = ["viem", "ethers", "cast", "forge"];
/** Those of the OpenAI-compatible API. */
const API_CLIENTS = ["openai", "openai-python"];
const TEST_WAIT_MS = 60_000;

const update = process.argv.includes("--update");
const asked = process.argv.slice(2).filter((argument) => !argument.startsWith("--"));
const known = [...CLIENTS, ...API_CLIENTS];
const unknown = asked.filter((name) => !known.includes(name));
if (unknown.length > 0) {
  console.error(`unknown client: ${unknown.join(", ")}; clients: ${known.join(", ")}`);
  process.exit(2);
}

let nFailed = 0;

// What a client library throws where nobody can catch it is a failure too, and must not leave nodes behind.
process.on("unhandledRejection", (error) => {
  nFailed += 1;
  console.log(`FAIL  unhandled: ${error.stack ?? error}`);
});
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));

/** Runs one test with a limit on its time. What fails is shown, and the next one runs. */
function testOf(client) {
  return async (name, work) => {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not done after ${TEST_WAIT_MS / 1000} s`)), TEST_WAIT_MS);
    });
    const start = performance.now();
    try {
      await Promise.race([work(), late]);
      console.log(`ok    ${client}: ${name} (${Math.round(performance.now() - start)} ms)`);
    } catch (error) {
      nFailed += 1;
      console.log(`FAIL  ${client}: ${name}\n${String(error.stack ?? error).replace(/^/gm, "      ")}`);
    } finally {
      clearTimeout(timer);
    }
  };
}

/** Runs a client's tests, against a node with a block for every transaction unless a test starts another. */
async function drive(client) {
  const nFailedBefore = nFailed;
  const calls = new Map();
  const logs = [];
  const start = async (...options) => {
    const node = await startNode(...options);
    const proxy = await startProxy(node, calls);
    const stop = async () => {
      await proxy.stop();
      await node.stop();
      logs.push(node.log());
    };
    return { node, proxy, stop };
  };
  const { node, proxy, stop } = await start("--block-time", "on-demand");
  try {
    const { default: run } = await import(`./${client}.mjs`);
    await run({ test: testOf(client), node, proxy, start });
  } finally {
    await stop();
    if (nFailed > nFailedBefore) console.log(`logs of the nodes:\n${logs.join("\n").slice(-4_000)}`);
  }
  return calls;
}

/** Runs the tests of clients of the API, all against one server. */
async function driveApi(clients) {
  const nFailedBefore = nFailed;
  const server = await startApi();
  try {
    for (const client of clients) {
      const { default: run } = await import(`./${client}.mjs`);
      await run({ test: testOf(client), server });
    }
  } finally {
    await server.stop();
    if (nFailed > nFailedBefore) console.log(`log of the server:\n${server.log().slice(-4_000)}`);
  }
}

const wanted = (clients) => clients.filter((client) => asked.length === 0 || asked.includes(client));
const calls = new Map();
if (wanted(CLIENTS).length > 0) build();
for (const client of wanted(CLIENTS)) calls.set(client, await drive(client));
if (wanted(API_CLIENTS).length > 0) await driveApi(wanted(API_CLIENTS));
if (asked.length === 0) {
  if (update) updateTable(calls);
  else if (!checkTable(calls)) nFailed += 1;
}
console.log(nFailed === 0 ? "all clients passed" : `${nFailed} failed`);
process.exitCode = nFailed === 0 ? 0 : 1;
