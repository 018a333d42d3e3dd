// Verifies the answer of eth_getProof (EIP-1186) against a state root, from nothing but hashes.
import { viem } from "./tools.mjs";

const { fromRlp, hexToBytes, keccak256, toRlp, trim } = viem;

const nibbles = (hex) => [...hex.slice(2)];

/** The value under a key in the trie with this root; null if the proof shows that there is none. */
function lookUp(root, key, proof) {
  let path = nibbles(keccak256(key));
  let wanted = root;
  for (const [depth, node] of proof.entries()) {
    if (keccak256(node) !== wanted) throw new Error(`node ${depth} is not the one that its parent names`);
    let item = fromRlp(node, "hex");
    // A child shorter than a hash lies in its parent.
    for (;;) {
      if (item.length === 17) {
        item = path.length === 0 ? item[16] : item[parseInt(path.shift(), 16)];
      } else {
        const [head, ...rest] = nibbles(item[0]);
        const isLeaf = head === "2" || head === "3";
        const part = head === "1" || head === "3" ? rest : rest.slice(1);
        const matches = part.every((nibble, i) => path[i] === nibble);
        if (!matches || (isLeaf && part.length !== path.length)) return last(depth, proof, null);
        path = path.slice(part.length);
        item = item[1];
        if (isLeaf) return last(depth, proof, item);
      }
      if (item === "0x") return last(depth, proof, null);
      if (typeof item === "string") break;
    }
    wanted = item;
  }
  if (proof.length === 0 && root === keccak256(toRlp("0x"))) return null;
  throw new Error("the proof ends too early");
}

function last(depth, proof, value) {
  if (depth !== proof.length - 1) throw new Error("the proof has nodes that it does not need");
  return value;
}

const quantity = (value) => (BigInt(value) === 0n ? "0x" : viem.numberToHex(value, { size: undefined }));
const compact = (value) => {
  const hex = quantity(value);
  return hex.length % 2 === 0 ? hex : `0x0${hex.slice(2)}`;
};

/** Checks an account and its slots; returns whether the account exists. */
export function verifyProof(stateRoot, answer) {
  const leaf = lookUp(stateRoot, answer.address, answer.accountProof);
  const { nonce, balance, storageHash, codeHash } = answer;
  const claimed = toRlp([compact(BigInt(nonce)), compact(balance), storageHash, codeHash]);
  const isEmpty = BigInt(nonce) === 0n && balance === 0n && codeHash === keccak256("0x");
  if (leaf === null ? !isEmpty : leaf !== claimed) throw new Error("the proof is not of this account");
  for (const { key, value, proof } of answer.storageProof) {
    const slot = viem.pad(key, { size: 32 });
    const found = lookUp(storageHash, slot, proof);
    const shown = found === null ? 0n : BigInt(fromRlp(found, "hex"));
    if (shown !== BigInt(value)) throw new Error(`slot ${key} is ${shown}, not ${value}`);
  }
  return leaf !== null;
}
