// What the clients share: the libraries, the compiled contracts, the development keys, and plain JSON-RPC.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { root } from "../contracts/scripts/foundry.mjs";

// One lock file holds every npm package of the repository: that of contracts/.
const require = createRequire(join(root, "package.json"));
export const viem = require("viem");
export const { nonceManager, privateKeyToAccount } = require("viem/accounts");
export const { ethers } = require("ethers");
export const { OpenAI, APIError } = require("openai");
export const { WebSocket, WebSocketServer } = require("ws");

export const CHAIN_ID = 161200;

/** Keys of the development accounts, which everybody knows; each holds a million OPEN. */
export const KEYS = [
  "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
  "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
  "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
  "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
  "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
];

/** What each of them holds at first, in wei. */
export const FUNDS = 10n ** 24n;

/** ABI and init code of a contract of contracts/clients/. */
export function artifact(name, file = name) {
  const path = join(root, "cache", "clients", "out", `${file}.sol`, `${name}.json`);
  const { abi, bytecode } = JSON.parse(readFileSync(path, "utf8"));
  return { abi, bytecode: bytecode.object };
}

/** One call past the recording proxy, for looking at the chain with other eyes than the client's. */
export async function rpc(url, method, params = []) {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const reply = await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body });
  const { result, error } = await reply.json();
  if (error) throw Object.assign(new Error(`${method}: ${error.message}`), error);
  return result;
}

/** Waits until `ready()` is true, asking often; fails after ten seconds. */
export async function until(what, ready) {
  for (const end = Date.now() + 10_000; Date.now() < end; ) {
    if (await ready()) return;
    await new Promise((resume) => setTimeout(resume, 20));
  }
  throw new Error(`did not happen within 10 s: ${what}`);
}
