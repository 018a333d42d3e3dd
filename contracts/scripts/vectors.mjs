// Golden vectors of the formats that contracts, engine and verifier share, computed a third way:
// plain BigInt arithmetic from specs/poa.md and specs/receipt.md. Rust and Solidity tests read them.
//
//   node scripts/vectors.mjs           writes test/vectors/*.json
//   node scripts/vectors.mjs --check   fails if they differ
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import sha3 from "js-sha3";

const folder = join(dirname(fileURLToPath(import.meta.url)), "..", "test", "vectors");
const H = (...parts) => Buffer.from(sha3.keccak256.arrayBuffer(Buffer.concat(parts)));
const text = (value) => Buffer.from(value, "utf8");
const hex = (bytes) => `0x${bytes.toString("hex")}`;
const bytes = (value, size) => Buffer.from(BigInt(value).toString(16).padStart(2 * size, "0"), "hex");
const word = (value) => (Buffer.isBuffer(value) ? Buffer.concat([Buffer.alloc(32 - value.length), value]) : bytes(value, 32));

// --- evidence ----------------------------------------------------------------------------------
/** Lists with their totals; a total is what the weights would be if all of the pot were earned. */
function evidence([spans, spansTotal], [context, contextTotal], object) {
  const list = (names) =>
    names
      .map(([name, weight]) => [H(text(name)).subarray(12), weight])
      .sort(([a], [b]) => Buffer.compare(a, b));
  const [a, b] = [list(spans), list(context)];
  const packed = (entries, total) =>
    entries.length === 0
      ? Buffer.alloc(0)
      : Buffer.concat([bytes(total, 8), ...entries.map(([who, weight]) => Buffer.concat([who, bytes(weight, 8)]))]);
  const [first, second] = [packed(a, spansTotal), packed(b, contextTotal)];
  const encoding = Buffer.concat([bytes(first.length, 4), bytes(second.length, 4), first, second, object]);
  const show = (entries) => entries.map(([who, weight]) => ({ contributor: hex(who), weight: weight.toString() }));
  return {
    spans: hex(first),
    context: hex(second),
    object: hex(object),
    spansTotal: spansTotal.toString(),
    contextTotal: contextTotal.toString(),
    spansList: show(a),
    contextList: show(b),
    encoding: hex(encoding),
    hash: hex(H(encoding)),
  };
}
const crowd = Array.from({ length: 256 }, (_, i) => [`contributor ${i}`, BigInt(i + 1) ** 5n]);
const none = [[], 0n];
const evidenceCases = [
  evidence(none, none, Buffer.alloc(32)),
  evidence([[["ana", 1n]], 1n], none, H(text("object"))),
  evidence(none, [[["ana", 2n ** 63n - 1n]], 2n ** 64n - 1n], H(text("object"))),
  evidence([[["ana", 3n], ["bo", 7n]], 12n], [[["bo", 5n], ["cy", 2n ** 40n]], 2n ** 40n + 5n], H(text("both"))),
  evidence([crowd, 2n ** 50n], [crowd.slice(0, 2), 33n], H(text("crowd"))),
  // Next to nothing of an answer of 4,000 bits, and all of it but the floor.
  evidence([[["ana", 1_000_000n]], 4_000_000_000_000n], none, H(text("chance"))),
  evidence([[["ana", 3_936_000_000_000n]], 4_000_000_000_000n], [[["bo", 200n]], 1_200n], H(text("quoted"))),
];

// --- receipt -----------------------------------------------------------------------------------
const settlement = Buffer.from("4f50454e00000000000000000000000000000005", "hex");
const receipt = {
  chainId: 161200n,
  settlement,
  payer: H(text("payer")).subarray(12),
  requestId: H(text("request")),
  modelId: H(text("defi-exploits")),
  baseHash: H(text("base")),
  adapterHash: H(text("adapter")),
  manifestHash: H(text("manifest")),
  sketchRoot: H(text("sketches")),
  promptHash: H(bytes(1, 4), bytes(2, 4), bytes(70000, 4)),
  responseHash: H(bytes(3, 4)),
  queryHash: H(Buffer.alloc(256, 0xff)),
  evidenceHash: Buffer.from(evidenceCases[3].hash.slice(2), "hex"),
  tokensIn: 3n,
  tokensOut: 1n,
  feeWei: 1_234_567_890_123_456_789n,
  answeredAt: 1_800_000_000n,
};
const encoding = Buffer.concat(Object.values(receipt).map(word));
const show = (value) => (Buffer.isBuffer(value) ? hex(value) : value.toString());
const receiptVector = {
  fields: Object.fromEntries(Object.entries(receipt).map(([key, value]) => [key, show(value)])),
  encoding: hex(encoding),
  id: hex(H(encoding)),
};

// --- sketch index ------------------------------------------------------------------------------
const ZERO = Buffer.alloc(32);
const sketchStore = Buffer.from("4f50454e00000000000000000000000000000004", "hex");
const CHUNK = 128;
function fold(level) {
  while (level.length > 1) {
    const next = [];
    for (let i = 0; i < level.length; i += 2) next.push(H(Buffer.from([1]), level[i], level[i + 1]));
    level = next;
  }
  return level[0];
}
function padded(nodes, width) {
  return [...nodes, ...Array(width - nodes.length).fill(ZERO)];
}
/** Codes of a sketch from a seed: any byte but 0x80. */
function codes(seed) {
  const out = Buffer.alloc(256);
  for (let i = 0; i < 8; i++) H(text(`${seed} ${i}`)).copy(out, 32 * i);
  return Buffer.from(out.map((code) => (code === 0x80 ? 0x81 : code)));
}
/** Codes of an entry, -7 to 7, and the same with code j above code 128 + j in byte j. */
const small = (sketch) => signed(sketch).map((code) => code % 8n);
const packed = (sketch) => {
  const halves = small(sketch).map((code) => Number(code) & 15);
  return Buffer.from(halves.slice(0, 128).map((high, j) => (high << 4) | halves[128 + j]));
};
const signed = (sketch) => [...new Int8Array(sketch)].map(BigInt);

function index(name, nEntries, nContributors, nullThreshold) {
  const entries = Array.from({ length: nEntries }, (_, cluster) => ({
    contributor: H(text(`${name} contributor ${cluster % nContributors}`)).subarray(12),
    record: H(text(`${name} record ${cluster}`)),
    cluster,
    scale: 1 + ((cluster * 7919) % 65535),
    codes: codes(`${name} codes ${cluster}`),
  })).sort((a, b) => Buffer.compare(a.contributor, b.contributor) || a.cluster - b.cluster);
  const encoded = entries.map((entry) =>
    Buffer.concat([entry.contributor, entry.record, bytes(entry.cluster, 4), bytes(entry.scale, 2), packed(entry.codes)]),
  );
  const chunks = [];
  for (let i = 0; i < nEntries; i += CHUNK) chunks.push(encoded.slice(i, i + CHUNK));
  const chunkRoots = chunks.map((chunk) => fold(padded(chunk.map((entry) => H(Buffer.from([0]), entry)), CHUNK)));
  // SketchStore creates the account of a chunk by CREATE2 with salt 0.
  const addresses = chunks.map((chunk) => {
    const code = Buffer.concat([Buffer.from([0]), ...chunk]);
    const initCode = Buffer.concat([Buffer.from([0x61]), bytes(code.length, 2), Buffer.from("80600a3d393df3", "hex"), code]);
    return H(Buffer.from([0xff]), sketchStore, ZERO, H(initCode)).subarray(12);
  });
  const width = 2 ** Math.ceil(Math.log2(chunks.length));
  const query = codes(`${name} query`);
  const nets = new Map();
  for (const entry of entries) {
    const dot = signed(query).reduce((sum, q, j) => sum + q * small(entry.codes)[j], 0n);
    const key = hex(entry.contributor);
    nets.set(key, (nets.get(key) ?? 0n) + BigInt(entry.scale) * dot);
  }
  const paid = [...nets].map(([who, net]) => [who, net - nullThreshold]).filter(([, weight]) => weight > 0n);
  return {
    name,
    nEntries,
    chunks: chunks.map((chunk) => hex(Buffer.concat(chunk))),
    addresses: addresses.map(hex),
    chunkRoots: chunkRoots.map(hex),
    root: hex(fold(padded(chunkRoots, width))),
    query: hex(query),
    nullThreshold: nullThreshold.toString(),
    contributors: paid.map(([who]) => who),
    weights: paid.map(([, weight]) => weight.toString()),
  };
}
const sketchVectors = [index("one", 1, 1, 0n), index("three", 3, 2, 1000n), index("chunks", 260, 7, 50_000_000n)];

// --- shares ------------------------------------------------------------------------------------
function shares(pot, weights) {
  const sum = weights.reduce((a, b) => a + b, 0n);
  if (sum === 0n) return weights.map(() => 0n);
  const amounts = weights.map((weight) => (pot * weight) / sum);
  const remainders = weights.map((weight, i) => [(pot * weight) % sum, i]);
  remainders.sort(([a, i], [b, j]) => (a === b ? i - j : a > b ? -1 : 1));
  const left = Number(pot - amounts.reduce((a, b) => a + b, 0n));
  for (const [, i] of remainders.slice(0, left)) amounts[i] += 1n;
  return amounts;
}
/** What is earned of the pots for spans and context; the rest is for training. */
function pots(part, potsBps, { spansList, spansTotal, contextList, contextTotal }) {
  const all = shares(part, potsBps.map(BigInt));
  const paid = [
    [1, spansList, BigInt(spansTotal)],
    [2, contextList, BigInt(contextTotal)],
  ].map(([pot, list, total]) => (total === 0n ? 0n : (all[pot] * list.reduce((sum, { weight }) => sum + BigInt(weight), 0n)) / total));
  return [part - paid[0] - paid[1], ...paid];
}
const potVectors = [
  [0, 10n ** 18n + 7n, [6000, 2000, 2000]],
  [0, 7n, [10000, 0, 0]],
  [1, 10n ** 18n + 7n, [6000, 2000, 2000]],
  [1, 1n, [6000, 2000, 2000]],
  [2, 10n ** 18n + 7n, [6000, 2000, 2000]],
  [3, 10n ** 18n + 7n, [6000, 2500, 1500]],
  [3, 0n, [6000, 2500, 1500]],
  [4, 5n * 10n ** 26n - 1n, [5000, 4000, 1000]],
  [5, 10n ** 18n + 7n, [6000, 2000, 2000]],
  [5, 3n, [6000, 2000, 2000]],
  [6, 10n ** 18n + 7n, [6000, 2000, 2000]],
  [6, 2n ** 127n - 1n, [5000, 1000, 4000]],
].map(([which, part, potsBps]) => ({
  case: which,
  part: part.toString(),
  potsBps,
  amounts: pots(part, potsBps, evidenceCases[which]).map(String),
}));
const shareCases = [
  [0n, [1n, 2n]],
  [1n, [1n, 1n]],
  [10n, [1n, 1n, 1n]],
  [100n, [0n, 2n, 1n]],
  [7n, [0n, 0n]],
  [7n, []],
  [5n, [3n]],
  [10n ** 18n + 1n, [1000n, 2000n, 2000n, 5000n]],
  [2n ** 128n - 1n, [2n ** 63n - 1n, 1n, 2n ** 63n - 2n]],
  [1_000_003n, Array.from({ length: 40 }, (_, i) => BigInt((i * 7919 + 13) % 101))],
];
const shareVectors = shareCases.map(([pot, weights]) => ({
  pot: pot.toString(),
  weights: weights.map(String),
  amounts: shares(pot, weights).map(String),
}));

// -----------------------------------------------------------------------------------------------
const files = {
  "evidence.json": { cases: evidenceCases, pots: potVectors },
  "receipt.json": receiptVector,
  "shares.json": { cases: shareVectors },
  "sketch.json": { indexes: sketchVectors },
};
mkdirSync(folder, { recursive: true });
for (const [name, value] of Object.entries(files)) {
  const path = join(folder, name);
  const wanted = `${JSON.stringify(value, null, 2)}\n`;
  if (!process.argv.includes("--check")) {
    writeFileSync(path, wanted);
  } else if (!existsSync(path) || readFileSync(path, "utf8") !== wanted) {
    console.error(`${name} is stale: run node scripts/vectors.mjs`);
    process.exitCode = 1;
  }
}
