// forge: a deployment script of many transactions, and what it left.
import assert from "node:assert/strict";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { root } from "../contracts/scripts/foundry.mjs";
import { tool } from "./foundry.mjs";
import { CHAIN_ID, KEYS, artifact, ethers, rpc } from "./tools.mjs";

const BROADCAST = join(root, "cache", "clients", "broadcast", "Deploy.s.sol", String(CHAIN_ID), "run-latest.json");
const NAMES = ["Token", null, null, "Badge", null, "Box", "BoxProxy", "BoxTwo", null, null];

export default async function run({ test, node, proxy }) {
  const provider = new ethers.JsonRpcProvider(node.http, undefined, { cacheTimeout: -1 });

  /** Broadcasts the script with a key, and checks every transaction, receipt and event of it. */
  const deploy = async (key, ...options) => {
    const deployer = new ethers.Wallet(key).address;
    const forge = tool("forge", proxy.http, { DEPLOYER_KEY: key });
    rmSync(BROADCAST, { force: true });
    const shown = await forge("script", "clients/Deploy.s.sol:Deploy", "--rpc-url", proxy.http, "--broadcast", "--non-interactive", ...options);
    assert.match(shown, /ONCHAIN EXECUTION COMPLETE & SUCCESSFUL/);
    const { chain, transactions, receipts, returns } = JSON.parse(readFileSync(BROADCAST, "utf8"));
    assert.equal(chain, CHAIN_ID);
    assert.deepEqual(transactions.map(({ transactionType, contractName }) => (transactionType === "CREATE" ? contractName : null)), NAMES);
    assert.equal(receipts.length, NAMES.length);
    const nonces = [];
    for (const { hash } of transactions) {
      const [sent, receipt] = [await provider.getTransaction(hash), await provider.getTransactionReceipt(hash)];
      assert.deepEqual([sent.from, receipt.status], [deployer, 1]);
      nonces.push(sent.nonce);
      const said = receipts.find(({ transactionHash }) => transactionHash === hash);
      assert.deepEqual([said.status, BigInt(said.gasUsed), said.blockHash], ["0x1", receipt.gasUsed, receipt.blockHash]);
    }
    // Sent at once, the hashes are noted in the order of the answers.
    assert.deepEqual(nonces.sort((a, b) => a - b), [...NAMES.keys()]);
    return { deployer, transactions, at: Object.fromEntries(Object.entries(returns).map(([name, { value }]) => [name, ethers.getAddress(value)])) };
  };
  const contract = (name, address, file) => new ethers.Contract(address, artifact(name, file).abi, provider);

  await test("script --broadcast, all transactions at once", async () => {
    const { deployer, at } = await deploy(KEYS[0]);
    assert.equal(at.token, ethers.getCreateAddress({ from: deployer, nonce: 0 }));
    const token = contract("Token", at.token);
    assert.equal(await token.totalSupply(), ethers.parseEther("1005"));
    assert.equal(await token.hasRole(await token.MINTER(), deployer), true);
    assert.equal(await contract("Badge", at.badge).ownerOf(7n), deployer);
    const box = contract("BoxTwo", at.box, "Box");
    assert.deepEqual([await box.version(), await box.value(), await box.keeper()], [2n, 43n, deployer]);
    const stored = await box.queryFilter(box.filters.Stored(), 0);
    assert.deepEqual(stored.map(({ args }) => args.value), [42n, 43n]);
  });

  await test("script --broadcast --slow --legacy, one after the other", async () => {
    const { transactions } = await deploy(KEYS[1], "--slow", "--legacy");
    const blocks = [];
    for (const { hash } of transactions) {
      const receipt = await provider.getTransactionReceipt(hash);
      assert.equal(receipt.type, 0);
      blocks.push(receipt.blockNumber);
    }
    assert.deepEqual(blocks, [...new Set(blocks)].sort((a, b) => a - b));
  });

  await test("create deploys one contract with arguments", async () => {
    const forge = tool("forge", proxy.http);
    const holder = new ethers.Wallet(KEYS[2]).address;
    const options = ["--private-key", KEYS[2], "--rpc-url", proxy.http, "--broadcast", "--json"];
    const shown = JSON.parse(await forge("create", ...options, "clients/Token.sol:Token", "--constructor-args", `[${holder}]`, "9"));
    assert.equal(await contract("Token", shown.deployedTo).balanceOf(holder), 9n);
    assert.equal((await rpc(node.http, "eth_getTransactionReceipt", [shown.transactionHash])).status, "0x1");
  });

  await test("a fork of the chain runs a script without sending", async () => {
    const before = await rpc(node.http, "eth_blockNumber");
    const forge = tool("forge", proxy.http, { DEPLOYER_KEY: KEYS[3] });
    const shown = await forge("script", "clients/Deploy.s.sol:Deploy", "--fork-url", proxy.http);
    assert.match(shown, /SIMULATION COMPLETE/);
    assert.equal(await rpc(node.http, "eth_blockNumber"), before);
  });

  provider.destroy();
}
