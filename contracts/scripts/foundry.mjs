// Finds and runs the tools of foundry that package-lock.json pins: one npm package for each tool and platform, which
// holds the binary. Platforms without such a package need the same version in PATH.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const VERSION = "1.7.1";

/** The contracts folder. */
export const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** Path of `anvil`, `cast` or `forge`; ends the process if it is not installed. */
export function find(tool) {
  const cpu = { x64: "amd64", arm64: "arm64" }[process.arch];
  const extension = process.platform === "win32" ? ".exe" : "";
  const binary = join(root, "node_modules", "@foundry-rs", `${tool}-${process.platform}-${cpu}`, "bin", `${tool}${extension}`);
  if (existsSync(binary)) return binary;
  const { stdout } = spawnSync(tool, ["--version"], { encoding: "utf8" });
  if (stdout?.includes(VERSION)) return tool;
  console.error(`${tool} ${VERSION} is not installed: run npm ci in contracts/`);
  console.error(`hint: on a platform without an npm package of ${tool}, put that version in PATH`);
  process.exit(1);
}

/** Runs forge in the contracts folder, its output going where ours goes; ends the process if it fails. */
export function forge(...args) {
  const { status, error } = spawnSync(find("forge"), args, { cwd: root, stdio: "inherit" });
  if (error) console.error(`could not start forge: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}
