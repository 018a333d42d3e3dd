// Runs the tools of foundry as a user does, with nothing of the user's own configuration.
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { find, root } from "../contracts/scripts/foundry.mjs";

const COMMAND_WAIT_MS = 45_000;

/** A function that runs one tool against one endpoint and returns what it prints; it throws what it says if it fails. */
export function tool(name, url, env = {}) {
  const path = find(name);
  const home = join(root, "cache", "clients", "home");
  return async (...args) => {
    const options = {
      cwd: root,
      timeout: COMMAND_WAIT_MS,
      maxBuffer: 1 << 26,
      env: { PATH: process.env.PATH, HOME: home, ETH_RPC_URL: url, FOUNDRY_PROFILE: "clients", FOUNDRY_OFFLINE: "true", ...env },
    };
    const { stdout } = await promisify(execFile)(path, args.map(String), options);
    return stdout.trim();
  };
}
