// What the Rust side needs of the contracts: ABI and runtime code, one file each.
//
//   node scripts/artifacts.mjs           builds and writes them
//   node scripts/artifacts.mjs --check   builds and fails if a committed file differs
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { forge, root } from "./foundry.mjs";

const CONTRACTS = ["AttributionCourt", "DatanetRegistry", "InferenceSettlement", "ModelRegistry", "Open", "SketchStore"];
const INTERFACES = Object.fromEntries(
  ["IOpenTransfer", "IPoaScore", "IPoaShares", "IPoaVerify"].map((name) => [name, "Precompiles"]),
);

/** What Rust tests compare a precompile with. */
const TWINS = { PoaVerifyTwin: "CourtTwin" };

const check = process.argv.includes("--check");
const folder = join(root, "..", "crates", "ol-contracts", "artifacts");
forge("build", "src");
forge("build", "test/support/CourtTwin.sol");
mkdirSync(folder, { recursive: true });

const files = new Map();
for (const name of [...CONTRACTS, ...Object.keys(INTERFACES), ...Object.keys(TWINS)]) {
  const source = join(root, "out", `${INTERFACES[name] ?? TWINS[name] ?? name}.sol`, `${name}.json`);
  const { abi, deployedBytecode } = JSON.parse(readFileSync(source, "utf8"));
  const artifact = { contractName: name, abi };
  if (!(name in INTERFACES)) {
    // Genesis places this code as it is: it must not wait for values that a constructor would fill in.
    const { object, immutableReferences = {}, linkReferences = {} } = deployedBytecode;
    const open = { ...immutableReferences, ...linkReferences };
    if (!/^0x([0-9a-f]{2})+$/.test(object) || Object.keys(open).length > 0) {
      throw new Error(`${name}: the runtime code has immutables or unlinked libraries`);
    }
    artifact.deployedBytecode = object;
  }
  files.set(`${name}.json`, `${JSON.stringify(artifact, null, 1)}\n`);
}

let stale = readdirSync(folder).filter((name) => !files.has(name));
for (const [name, wanted] of files) {
  const path = join(folder, name);
  if (!check) writeFileSync(path, wanted);
  else if (!existsSync(path) || readFileSync(path, "utf8") !== wanted) stale.push(name);
}
if (stale.length > 0) {
  console.error(`crates/ol-contracts/artifacts: stale or unknown: ${stale.sort().join(", ")}`);
  console.error("hint: cargo xtask contracts");
  process.exit(1);
}
