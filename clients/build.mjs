// Compiles the contracts that the clients deploy: node clients/build.mjs
import { spawnSync } from "node:child_process";
import { find, root } from "../contracts/scripts/foundry.mjs";

/** Runs forge with the profile of these contracts; its output is shown only if it fails. */
export function build() {
  const env = { ...process.env, FOUNDRY_PROFILE: "clients" };
  const { status, stdout, stderr } = spawnSync(find("forge"), ["build"], { cwd: root, env, encoding: "utf8" });
  if (status !== 0) throw new Error(`forge build failed\n${stdout}${stderr}`);
}

if (import.meta.filename === process.argv[1]) build();
