// The Solidity tests, after checking the formatting and that the golden vectors are what their script computes.
// Arguments go to forge: node scripts/test.mjs --match-contract OpenTest
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { forge, root } from "./foundry.mjs";

const vectors = spawnSync(process.execPath, [join(root, "scripts", "vectors.mjs"), "--check"], { stdio: "inherit" });
if (vectors.status !== 0) process.exit(1);
forge("fmt", "--check");
forge("test", ...process.argv.slice(2));
