// Finds and runs the forge that package-lock.json pins. Its npm package is a launcher with one binary package for each
// platform; calling the binary needs no install script.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The contracts folder. */
export const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** Runs forge in the contracts folder, its output going where ours goes; ends the process if it fails. */
export function forge(...args) {
  const cpu = { x64: "amd64", arm64: "arm64" }[process.arch];
  const extension = process.platform === "win32" ? ".exe" : "";
  const binary = join(root, "node_modules", "@foundry-rs", `forge-${process.platform}-${cpu}`, "bin", `forge${extension}`);
  if (!existsSync(binary)) {
    console.error("forge is not installed: run npm ci in contracts/");
    process.exit(1);
  }
  const { status, error } = spawnSync(binary, args, { cwd: root, stdio: "inherit" });
  if (error) console.error(`could not start forge: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}
