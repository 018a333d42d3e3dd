// The table of docs/rpc.md: which method each client called, and whether the node served it.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const PAGE = join(import.meta.dirname, "..", "docs", "rpc.md");
const [BEGIN, END] = ["<!-- clients: begin -->", "<!-- clients: end -->"];

/** `yes` if a call succeeded, `refused` if every call was refused, empty if there was none. */
function cell(seen) {
  if (!seen) return "";
  return seen.n_ok > 0 ? "yes" : "refused";
}

function table(calls) {
  const methods = [...new Set([...calls.values()].flatMap((seen) => [...seen.keys()]))].sort();
  const clients = [...calls.keys()];
  const rows = methods.map((method) => [`\`${method}\``, ...clients.map((client) => cell(calls.get(client).get(method)))]);
  const lines = [["method", ...clients], ["method", ...clients].map(() => "---"), ...rows];
  return lines.map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

function parts() {
  const page = existsSync(PAGE) ? readFileSync(PAGE, "utf8") : "";
  const [start, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (start < 0 || end < start) throw new Error(`docs/rpc.md has no lines ${BEGIN} and ${END}`);
  const from = start + BEGIN.length;
  return { before: page.slice(0, from), found: page.slice(from, end).trim(), after: page.slice(end) };
}

/** Rewrites the table. */
export function updateTable(calls) {
  const { before, after } = parts();
  writeFileSync(PAGE, `${before}\n${table(calls)}\n${after}`);
}

/** Whether the table says what was seen; if not, shows where it differs. */
export function checkTable(calls) {
  const { found } = parts();
  const wanted = table(calls);
  if (found === wanted) return true;
  const [old, now] = [found.split("\n"), wanted.split("\n")];
  console.log("FAIL  docs/rpc.md is stale; node clients/run.mjs --update");
  for (const line of old) if (!now.includes(line)) console.log(`      - ${line}`);
  for (const line of now) if (!old.includes(line)) console.log(`      + ${line}`);
  return false;
}
