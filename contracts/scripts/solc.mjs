#!/usr/bin/env node
// The compiler as forge calls it: `--version`, or standard JSON on stdin.
// solcjs is the same compiler as the native one, built to WebAssembly, and comes from npm.
import { readFileSync } from "node:fs";
import solc from "solc";

if (process.argv.includes("--version")) {
  // forge wants the platform last and no emscripten suffix it cannot parse.
  console.log(`solc, the solidity compiler\nVersion: ${solc.version()}`);
} else if (process.argv.includes("--standard-json")) {
  process.stdout.write(solc.compile(readFileSync(0, "utf8")));
} else {
  console.error("solc.mjs answers only --version and --standard-json");
  process.exit(1);
}
