// cast: every question it can ask a node, each with its exact answer.
import assert from "node:assert/strict";
import { CHAIN_ID, FUNDS, KEYS, artifact, ethers, rpc } from "./tools.mjs";
import { tool } from "./foundry.mjs";
import { verifyProof } from "./proof.mjs";

const CAFE = "0x000000000000000000000000000000000000cafE";
const IMPLEMENTATION_SLOT = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";

export default async function run({ test, node, proxy }) {
  const cast = tool("cast", proxy.http);
  const json = async (...args) => JSON.parse(await cast(...args, "--json"));
  const [alice, bob, carol] = KEYS.map((key) => new ethers.Wallet(key).address);
  const send = async (...args) => {
    const receipt = await json("send", "--private-key", KEYS[0], ...args);
    assert.equal(receipt.status, "0x1");
    return receipt;
  };
  const codes = Object.fromEntries(
    [["Token"], ["Failures", "Tools"], ["Batch", "Tools"], ["Box"], ["BoxProxy", "Box"]].map(([name, file]) => [name, artifact(name, file)]),
  );
  const at = {};
  const create = async (name, types = [], values = []) => {
    const code = codes[name].bytecode + ethers.AbiCoder.defaultAbiCoder().encode(types, values).slice(2);
    const receipt = await send("--create", code);
    at[name] = ethers.getAddress(receipt.contractAddress);
    return receipt;
  };
  /** What a command that must fail says. */
  const failure = (work) => work.then((shown) => assert.fail(`it succeeded: ${shown}`), (error) => error.stderr);

  await test("the chain says what it is", async () => {
    assert.equal(await cast("chain-id"), String(CHAIN_ID));
    assert.match(await cast("client"), /^openledger\/v/);
    assert.equal(await cast("block-number"), "0");
    assert.equal(await cast("balance", alice), FUNDS.toString());
    assert.equal(await cast("nonce", alice), "0");
    assert.equal(await cast("base-fee"), "1000000000");
    assert.equal(await cast("rpc", "net_version"), `"${CHAIN_ID}"`);
    assert.equal(await cast("rpc", "web3_sha3", "0x"), `"${ethers.keccak256("0x")}"`);
  });

  await test("send --create, and what it left", async () => {
    const receipt = await create("Token", ["address[]", "uint256"], [[alice, bob], 1000n]);
    assert.equal(at.Token, ethers.getCreateAddress({ from: alice, nonce: 0 }));
    assert.equal(receipt.blockNumber, "0x1");
    const paid = BigInt(receipt.gasUsed) * BigInt(receipt.effectiveGasPrice);
    assert.equal(await cast("balance", alice), (FUNDS - paid).toString());
    assert.equal(await cast("call", at.Token, "totalSupply()(uint256)"), "2000");
    assert.equal(await cast("call", at.Token, "name()(string)"), '"Token"');
    assert.equal(await cast("codesize", at.Token), String((await cast("code", at.Token)).length / 2 - 1));
    assert.equal(await cast("codehash", at.Token), ethers.keccak256(await cast("code", at.Token)));
    assert.equal(BigInt(await cast("storage", at.Token, "2")), 2000n);
    assert.equal(await cast("nonce", at.Token), "1");
  });

  await test("estimate, access list, and a transaction of each kind", async () => {
    const transfer = [at.Token, "transfer(address,uint256)", CAFE, "5"];
    const estimate = BigInt(await cast("estimate", "--from", alice, ...transfer));
    const list = await json("access-list", "--from", alice, ...transfer);
    assert.equal(list.accessList.length, 1);
    assert.equal(ethers.getAddress(list.accessList[0].address), at.Token);
    assert.equal(list.accessList[0].storageKeys.length, 2);
    const receipt = await send(...transfer);
    assert.ok(estimate >= BigInt(receipt.gasUsed));
    assert.equal(receipt.type, "0x2");
    assert.equal(receipt.logs[0].topics[0], ethers.id("Transfer(address,address,uint256)"));
    assert.equal(await cast("call", at.Token, "balanceOf(address)(uint256)", CAFE), "5");
    assert.equal((await send("--legacy", CAFE, "--value", "1")).type, "0x0");
    assert.equal((await send(...transfer, "--access-list")).type, "0x2");
    assert.equal(await cast("estimate", CAFE, "--value", "1", "--from", alice), "21000");
    assert.equal(await cast("erc20-token", "balance", at.Token, CAFE), "10");
  });

  await test("blocks, transactions and receipts", async () => {
    const { transactionHash: hash, blockNumber, blockHash } = await send(CAFE, "--value", "2");
    const block = await json("block", BigInt(blockNumber));
    assert.equal(block.hash, blockHash);
    assert.deepEqual(block.transactions, [hash]);
    assert.equal((await json("block", blockHash, "--full")).transactions[0].hash, hash);
    assert.equal(await cast("block", "latest", "--field", "number"), String(BigInt(blockNumber)));
    assert.equal((await json("block", "finalized")).hash, (await json("block", "safe")).hash);
    const sent = await json("tx", hash);
    assert.deepEqual([ethers.getAddress(sent.from), BigInt(sent.value), sent.blockHash], [alice, 2n, blockHash]);
    assert.equal(await cast("receipt", hash, "status"), "true");
    assert.equal((await json("receipt", hash)).blockHash, blockHash);
    assert.equal(await cast("find-block", BigInt(block.timestamp) + 1_000n), String(BigInt(blockNumber)));
    assert.match(await cast("age"), /20\d\d/);
    const raw = await cast("tx", hash, "--raw");
    assert.equal(ethers.keccak256(raw), hash);
    assert.match(await failure(cast("receipt", ethers.ZeroHash, "--async")), /not found|null|missing/i);
  });

  await test("logs by event, by topic and by range", async () => {
    const event = "Transfer(address indexed,address indexed,uint256)";
    const all = await json("logs", "--from-block", 0, "--address", at.Token, event);
    assert.deepEqual(all.map(({ data }) => BigInt(data)), [1000n, 1000n, 5n, 5n]);
    const some = await json("logs", "--from-block", 0, "--to-block", "latest", "--address", at.Token, event, ethers.ZeroAddress, bob);
    assert.deepEqual(some.map(({ data }) => BigInt(data)), [1000n]);
    assert.deepEqual(await json("logs", "--from-block", 0, "--to-block", 0, "--address", at.Token), []);
  });

  await test("reverts are decoded", async () => {
    await create("Failures");
    assert.match(await failure(cast("call", at.Failures, "reason()")), /plain reason/);
    assert.match(await failure(cast("call", at.Failures, "overflow(uint256)", ethers.MaxUint256)), /panic|0x11/i);
    const data = codes.Failures.abi.find(({ name }) => name === "Refused");
    const custom = await failure(cast("call", "--from", bob, at.Failures, "custom(uint256)", 9));
    const iface = new ethers.Interface([data]);
    const encoded = iface.encodeErrorResult("Refused", [bob, 9n, "because"]);
    assert.ok(custom.includes(encoded.slice(2)), custom);
    assert.match(await failure(cast("estimate", at.Failures, "reason()")), /plain reason/);
    assert.match(await failure(cast("send", "--private-key", KEYS[0], at.Failures, "reason()")), /plain reason/);
    const receipt = await json("send", "--private-key", KEYS[0], "--gas-limit", 100_000, at.Failures, "reason()");
    assert.equal(receipt.status, "0x0");
  });

  await test("a proxy, and what stands behind it", async () => {
    await create("Box");
    await create("BoxProxy", ["address", "bytes"], [at.Box, new ethers.Interface(codes.Box.abi).encodeFunctionData("initialize", [41])]);
    assert.equal(ethers.getAddress(await cast("implementation", at.BoxProxy)), at.Box);
    assert.equal(BigInt(await cast("storage", at.BoxProxy, IMPLEMENTATION_SLOT)), BigInt(at.Box));
    assert.equal(await cast("call", at.BoxProxy, "value()(uint256)"), "41");
    await send(at.BoxProxy, "store(uint256)", 42);
    assert.equal(await cast("call", at.BoxProxy, "value()(uint256)"), "42");
  });

  await test("make a transaction, publish it later", async () => {
    const raw = await cast("mktx", "--private-key", KEYS[1], CAFE, "--value", "3");
    const hash = ethers.keccak256(raw);
    const shown = await cast("publish", "--async", raw);
    assert.ok(shown.includes(hash), shown);
    assert.equal((await json("receipt", hash)).status, "0x1");
    assert.match(await failure(cast("publish", raw)), /already known|nonce too low/);
    const { status } = await json("send", "--sync", "--private-key", KEYS[1], CAFE, "--value", "3");
    assert.equal(status, "0x1");
  });

  await test("EIP-7702: an account gets code", async () => {
    await create("Batch");
    const authorization = await cast("wallet", "sign-auth", at.Batch, "--private-key", KEYS[2]);
    const receipt = await send("--auth", authorization, carol);
    assert.equal(receipt.type, "0x4");
    assert.equal(await cast("code", carol), `0xef0100${at.Batch.slice(2).toLowerCase()}`);
    assert.equal(await cast("nonce", carol), "1");
  });

  await test("the past can be read", async () => {
    const number = await cast("block-number");
    const balance = await cast("balance", CAFE);
    await send(CAFE, "--value", "1");
    assert.equal(await cast("balance", CAFE), String(BigInt(balance) + 1n));
    assert.equal(await cast("balance", "--block", number, CAFE), balance);
    assert.equal(await cast("call", "--block", 1, at.Token, "balanceOf(address)(uint256)", CAFE), "0");
    assert.equal(await cast("code", "--block", 0, at.Token), "0x");
    assert.equal(await cast("nonce", "--block", 1, alice), "1");
    assert.equal(BigInt(await cast("storage", "--block", 0, at.Token, "2")), 0n);
  });

  await test("a proof holds against the state root", async () => {
    const answer = await json("proof", at.Token, "2");
    const proof = { ...answer, nonce: Number(answer.nonce), balance: BigInt(answer.balance) };
    proof.storageProof = answer.storageProof.map((slot) => ({ ...slot, key: ethers.zeroPadValue(ethers.toBeHex(slot.key), 32) }));
    assert.equal(verifyProof(await cast("block", "latest", "--field", "stateRoot"), proof), true);
    assert.equal(await cast("storage-root", at.Token), answer.storageHash);
  });

  await test("traces: of the node, and of a replay on this machine", async () => {
    const { transactionHash: hash } = await send(at.Token, "transfer(address,uint256)", CAFE, "7");
    const frame = JSON.parse(await cast("rpc", "debug_traceTransaction", hash, '{"tracer":"callTracer"}'));
    const { gasUsed } = await json("receipt", hash);
    assert.deepEqual([frame.type, frame.to, frame.gasUsed], ["CALL", at.Token.toLowerCase(), gasUsed]);
    const replay = await cast("run", hash, "--disable-labels");
    assert.match(replay, /Transaction successfully executed/);
    assert.ok(replay.includes(`Gas used: ${BigInt(gasUsed)}`), replay);
    const traces = JSON.parse(await cast("trace", hash));
    assert.equal(traces.length, 1);
    assert.equal(traces[0].action.to, at.Token.toLowerCase());
    const traced = await cast("call", "--trace", "--from", alice, at.Token, "transfer(address,uint256)", CAFE, "1");
    assert.match(traced, /emit|Transfer|topic 0/);
  });

  await test("prices, pool and pending", async () => {
    assert.deepEqual(await json("tx-pool", "status"), { pending: "0x0", queued: "0x0" });
    const [price, tip] = [BigInt(await cast("gas-price")), BigInt(await cast("rpc", "eth_maxPriorityFeePerGas").then(JSON.parse))];
    const history = JSON.parse(await cast("rpc", "eth_feeHistory", "0x1", "latest", "[]"));
    const [newest, next] = history.baseFeePerGas.map(BigInt);
    assert.equal(price, (newest > next ? newest : next) + tip);
    const nonce = BigInt(await cast("nonce", alice));
    const later = await cast("mktx", "--private-key", KEYS[0], "--nonce", nonce + 1n, "--gas-limit", 21_000, CAFE);
    await cast("publish", "--async", later);
    assert.deepEqual(await json("tx-pool", "status"), { pending: "0x0", queued: "0x1" });
    assert.deepEqual(Object.keys((await json("tx-pool", "content")).queued).map(ethers.getAddress), [alice]);
    await send("--nonce", nonce, CAFE);
    assert.deepEqual(await json("tx-pool", "status"), { pending: "0x0", queued: "0x0" });
    assert.equal(await cast("nonce", "--block", "pending", alice), String(nonce + 2n));
  });

  await test("development: time and mining", async () => {
    const number = BigInt(await cast("block-number"));
    await cast("rpc", "evm_mine");
    await cast("rpc", "anvil_mine", "0x2");
    assert.equal(BigInt(await cast("block-number")), number + 3n);
    assert.equal(BigInt(await rpc(node.http, "eth_blockNumber")), number + 3n);
  });
}
