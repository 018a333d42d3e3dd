// ethers 6: deployments, events, governance, and what its providers do on their own.
import assert from "node:assert/strict";
import { CHAIN_ID, FUNDS, KEYS, artifact, ethers, until } from "./tools.mjs";
import { verifyProof } from "./proof.mjs";

const BEEF = "0x000000000000000000000000000000000000bEEF";
const CAFE = "0x000000000000000000000000000000000000cafE";

export default async function run({ test, node, proxy }) {
  const provider = new ethers.JsonRpcProvider(proxy.http, undefined, { cacheTimeout: -1, pollingInterval: 50 });
  const [alice, bob, carol] = KEYS.map((key) => new ethers.Wallet(key, provider));
  const at = {};

  const mined = async (sent) => {
    const receipt = await (await sent).wait(1, 20_000);
    assert.equal(receipt.status, 1);
    return receipt;
  };
  const deploy = async (name, args = [], file = name) => {
    const { abi, bytecode } = artifact(name, file);
    const contract = await new ethers.ContractFactory(abi, bytecode, alice).deploy(...args);
    const receipt = await mined(contract.deploymentTransaction());
    at[name] = contract;
    return receipt;
  };
  /** What a call that must revert says, as ethers decodes it. */
  const revert = async (work) => {
    const error = await work.then(
      () => assert.fail("it did not revert"),
      (error) => error,
    );
    assert.ok(ethers.isError(error, "CALL_EXCEPTION"), `not a decoded revert: ${error}`);
    return error;
  };
  /** The custom error of a transaction that could not be estimated: ethers leaves its decoding to the contract. */
  const custom = async (contract, work) => {
    const { action, data } = await revert(work);
    assert.equal(action, "estimateGas");
    return contract.interface.parseError(data);
  };

  await test("the network is found", async () => {
    const { chainId } = await provider.getNetwork();
    assert.equal(chainId, BigInt(CHAIN_ID));
    assert.equal(await provider.getBlockNumber(), 0);
    assert.equal(await provider.getBalance(alice.address), FUNDS);
    assert.equal(await provider.getTransactionCount(alice.address), 0);
    assert.equal((await provider.getBlock(0)).parentHash, ethers.ZeroHash);
  });

  await test("a factory deploys an ERC-20", async () => {
    const receipt = await deploy("Token", [[alice.address, bob.address], ethers.parseEther("1000")]);
    assert.equal(receipt.blockNumber, 1);
    assert.equal(await at.Token.getAddress(), ethers.getCreateAddress({ from: alice.address, nonce: 0 }));
    assert.equal(receipt.contractAddress, await at.Token.getAddress());
    assert.equal(await provider.getBalance(alice.address), FUNDS - receipt.fee);
    assert.equal(await at.Token.totalSupply(), ethers.parseEther("2000"));
    assert.equal(await at.Token.getDeployedCode(), await provider.getCode(at.Token.target));
    assert.deepEqual(
      receipt.logs.map((log) => at.Token.interface.parseLog(log).name),
      ["RoleGranted", "Transfer", "Transfer"],
    );
  });

  await test("transfers: static call, estimate, transaction, event", async () => {
    assert.equal(await at.Token.transfer.staticCall(BEEF, 5n), true);
    const estimate = await at.Token.transfer.estimateGas(BEEF, 5n);
    const receipt = await mined(at.Token.transfer(BEEF, 5n));
    assert.ok(estimate >= receipt.gasUsed);
    const [{ args, eventName }] = await at.Token.queryFilter(at.Token.filters.Transfer(null, BEEF), 0);
    assert.equal(eventName, "Transfer");
    assert.deepEqual([...args], [alice.address, BEEF, 5n]);
    const sent = await provider.getTransaction(receipt.hash);
    assert.equal(sent.from, alice.address);
    assert.deepEqual([...at.Token.interface.parseTransaction(sent).args], [BEEF, 5n]);
    assert.equal((await provider.getBlock(receipt.blockNumber, true)).prefetchedTransactions[0].hash, receipt.hash);
  });

  await test("every kind of transaction but blobs", async () => {
    const accessList = [{ address: at.Token.target, storageKeys: [ethers.ZeroHash] }];
    const { gasPrice } = await provider.getFeeData();
    const kinds = [{ type: 0, gasPrice }, { type: 1, gasPrice, accessList }, { type: 2, accessList }];
    for (const kind of kinds) {
      const receipt = await mined(alice.sendTransaction({ to: CAFE, value: 1n, ...kind }));
      assert.equal(receipt.type, kind.type);
      assert.equal(receipt.gasUsed, kind.type === 0 ? 21_000n : 25_300n);
      assert.equal((await provider.getTransaction(receipt.hash)).type, kind.type);
    }
    await deploy("Batch", [], "Tools");
    const authorization = await carol.authorize({ address: at.Batch.target, nonce: 1 });
    const receipt = await mined(carol.sendTransaction({ type: 4, to: carol.address, authorizationList: [authorization] }));
    assert.equal(receipt.type, 4);
    assert.equal(await provider.getCode(carol.address), `0xef0100${at.Batch.target.slice(2).toLowerCase()}`);
    const delegated = at.Batch.attach(carol.address).connect(carol);
    await mined(delegated.execute([{ to: CAFE, value: 4n, data: "0x" }]));
    assert.equal(await provider.getBalance(CAFE), 7n);
  });

  await test("permit: a signature instead of a transaction", async () => {
    const deadline = 4_102_444_800n;
    const domain = { name: "Token", version: "1", chainId: CHAIN_ID, verifyingContract: at.Token.target };
    const fields = { owner: "address", spender: "address", value: "uint256", nonce: "uint256", deadline: "uint256" };
    const types = { Permit: Object.entries(fields).map(([name, type]) => ({ name, type })) };
    const message = { owner: alice.address, spender: bob.address, value: 77n, nonce: 0n, deadline };
    const { v, r, s } = ethers.Signature.from(await alice.signTypedData(domain, types, message));
    const token = at.Token.connect(bob);
    await mined(token.permit(alice.address, bob.address, 77n, deadline, v, r, s));
    await mined(token.transferFrom(alice.address, bob.address, 70n));
    assert.equal(await token.allowance(alice.address, bob.address), 7n);
    const again = await revert(token.permit.staticCall(alice.address, bob.address, 77n, deadline, v, r, s));
    assert.equal(again.revert.name, "ERC2612InvalidSigner");
  });

  await test("reverts are decoded: reason, panic, custom error, none", async () => {
    await deploy("Failures", [], "Tools");
    const refused = await revert(at.Failures.custom(9n));
    assert.equal(refused.revert.name, "Refused");
    assert.deepEqual([...refused.revert.args], [alice.address, 9n, "because"]);
    assert.equal((await revert(at.Failures.reason())).reason, "plain reason");
    const panic = await revert(at.Failures.overflow(ethers.MaxUint256));
    assert.deepEqual([panic.revert.name, panic.revert.args[0]], ["Panic", 17]);
    const silent = await revert(at.Failures.silent());
    assert.deepEqual([silent.revert, silent.data], [null, "0x"]);
    const denied = await custom(at.Token, at.Token.connect(bob).mint(bob.address, 1n));
    assert.equal(denied.name, "AccessControlUnauthorizedAccount");
    assert.deepEqual([...denied.args], [bob.address, await at.Token.MINTER()]);
  });

  await test("a transaction that reverts fails the wait, with its receipt", async () => {
    const sent = await alice.sendTransaction({ to: at.Failures.target, data: at.Failures.interface.encodeFunctionData("reason"), gasLimit: 100_000n });
    const error = await revert(sent.wait(1, 20_000));
    assert.equal(error.receipt.status, 0);
    assert.equal(error.receipt.hash, sent.hash);
  });

  await test("what the chain refuses has the code that ethers knows", async () => {
    const gas = { gasLimit: 21_000n, maxFeePerGas: 5_000_000_000n, maxPriorityFeePerGas: 1n };
    const code = (work) => work.then(() => "accepted", (error) => error.code);
    assert.equal(await code(alice.sendTransaction({ to: CAFE, nonce: 0, ...gas })), "NONCE_EXPIRED");
    const poor = new ethers.Wallet(ethers.id("poor"), provider);
    assert.equal(await code(poor.sendTransaction({ to: CAFE, value: 1n, ...gas })), "INSUFFICIENT_FUNDS");
  });

  await test("a proxy is deployed, used and upgraded", async () => {
    await deploy("Box");
    await deploy("BoxTwo", [], "Box");
    await deploy("BoxProxy", [at.Box.target, at.Box.interface.encodeFunctionData("initialize", [41n])], "Box");
    const box = at.BoxTwo.attach(at.BoxProxy.target);
    const slot = BigInt(ethers.id("eip1967.proxy.implementation")) - 1n;
    const implementation = async () => ethers.getAddress(ethers.dataSlice(await provider.getStorage(box.target, slot), 12));
    assert.equal(await implementation(), at.Box.target);
    assert.deepEqual([await box.version(), await box.value()], [1n, 41n]);
    assert.equal((await custom(box, box.connect(bob).upgradeToAndCall(at.BoxTwo.target, "0x"))).name, "NotKeeper");
    const receipt = await mined(box.upgradeToAndCall(at.BoxTwo.target, box.interface.encodeFunctionData("increment")));
    assert.deepEqual(receipt.logs.map((log) => box.interface.parseLog(log).name), ["Upgraded", "Stored"]);
    assert.equal(await implementation(), at.BoxTwo.target);
    assert.deepEqual([await box.version(), await box.value()], [2n, 42n]);
  });

  await test("a governor proposes, votes and executes", async () => {
    await deploy("Vote", [], "Council");
    await deploy("Council", [at.Vote.target]);
    await mined(at.Vote.delegate(alice.address));
    await mined(alice.sendTransaction({ to: at.Council.target, value: 0n, data: "0x" }));
    const call = at.Vote.interface.encodeFunctionData("approve", [CAFE, 9n]);
    const proposal = [[at.Vote.target], [0n], [call]];
    const receipt = await mined(at.Council.propose(...proposal, "let CAFE spend"));
    const { args } = at.Council.interface.parseLog(receipt.logs[0]);
    const id = await at.Council.hashProposal(...proposal, ethers.id("let CAFE spend"));
    assert.equal(args.proposalId, id);
    const block = () => mined(bob.sendTransaction({ to: CAFE, value: 0n }));
    assert.equal(await at.Council.state(id), 0n);
    while ((await provider.getBlockNumber()) <= Number(args.voteStart)) await block();
    assert.equal(await at.Council.state(id), 1n);
    const vote = await mined(at.Council.castVoteWithReason(id, 1, "yes"));
    assert.equal(at.Council.interface.parseLog(vote.logs[0]).args.weight, ethers.parseEther("100"));
    assert.equal((await custom(at.Council, at.Council.castVote(id, 1))).name, "GovernorAlreadyCastVote");
    while ((await provider.getBlockNumber()) <= Number(args.voteEnd)) await block();
    assert.equal(await at.Council.state(id), 4n);
    await mined(at.Council.execute(...proposal, ethers.id("let CAFE spend")));
    assert.equal(await at.Council.state(id), 7n);
    assert.equal(await at.Vote.allowance(at.Council.target, CAFE), 9n);
  });

  await test("events by a subscription over WebSocket", async () => {
    const socket = new ethers.WebSocketProvider(proxy.ws);
    const token = at.Token.connect(socket);
    const [events, heads, pending] = [[], [], []];
    await token.on("Transfer", (from, to, value, payload) => events.push([from, to, value, payload.log.transactionHash]));
    await socket.on("block", (number) => heads.push(number));
    await socket.on("pending", (hash) => pending.push(hash));
    await until("three subscriptions", () => proxy.calls.get("eth_subscribe")?.n_ok >= 3);
    const before = await socket.getBlockNumber();
    const hashes = [];
    for (const value of [1n, 2n, 3n]) hashes.push((await mined(at.Token.transfer(CAFE, value))).hash);
    await until("all events", () => events.length >= 3 && heads.length >= 3 && pending.length >= 3);
    assert.deepEqual(events, [1n, 2n, 3n].map((value, i) => [alice.address, CAFE, value, hashes[i]]));
    assert.deepEqual(heads, [1, 2, 3].map((i) => before + i));
    assert.deepEqual(pending, hashes);
    await token.removeAllListeners();
    await socket.removeAllListeners();
    await until("three are given up", () => proxy.calls.get("eth_unsubscribe")?.n_ok >= 3);
    await socket.destroy();
  });

  await test("events by polling over HTTP", async () => {
    const events = [];
    const started = proxy.calls.get("eth_getFilterChanges")?.n_ok ?? 0;
    await at.Token.on(at.Token.filters.Transfer(null, CAFE), (payload) => events.push(payload.args.value));
    const heads = [];
    await provider.on("block", (number) => heads.push(number));
    await until("polling", () => (proxy.calls.get("eth_getFilterChanges")?.n_ok ?? 0) > started);
    const { blockNumber } = await mined(at.Token.transfer(CAFE, 4n));
    await until("the event", () => events.length >= 1 && heads.includes(blockNumber));
    assert.deepEqual(events, [4n]);
    await at.Token.removeAllListeners();
    await provider.removeAllListeners();
  });

  await test("fifty sends at once with a nonce manager", async () => {
    const manager = new ethers.NonceManager(new ethers.Wallet(KEYS[3], provider));
    const sent = await Promise.all(Array.from({ length: 50 }, () => manager.sendTransaction({ to: CAFE, value: 1n })));
    const receipts = await Promise.all(sent.map(mined));
    assert.deepEqual(sent.map(({ nonce }) => nonce).sort((a, b) => a - b), Array.from({ length: 50 }, (_, i) => i));
    assert.equal(new Set(receipts.map(({ hash }) => hash)).size, 50);
    assert.equal(await provider.getTransactionCount(await manager.getAddress()), 50);
  });

  await test("logs in pages are all logs, once", async () => {
    const head = await provider.getBlockNumber();
    const query = { address: at.Token.target, topics: [ethers.id("Transfer(address,address,uint256)")] };
    const pages = [];
    for (let from = 0; from <= head; from += 9) {
      pages.push(...(await provider.getLogs({ ...query, fromBlock: from, toBlock: Math.min(from + 8, head) })));
    }
    const all = await provider.getLogs({ ...query, fromBlock: 0, toBlock: "latest" });
    assert.deepEqual(pages.map(({ transactionHash, index }) => [transactionHash, index]), all.map(({ transactionHash, index }) => [transactionHash, index]));
    assert.equal(all.length, 8);
    assert.equal((await provider.getLogs({ ...query, blockHash: all[3].blockHash })).length, 1);
  });

  await test("calls of one moment go as one batch", async () => {
    const before = proxy.stats.n_batches;
    const values = await Promise.all([provider.getBalance(BEEF), at.Token.symbol(), at.Token.decimals(), provider.getStorage(at.Token.target, 2)]);
    assert.ok(proxy.stats.n_batches > before);
    assert.deepEqual(values.slice(0, 3), [0n, "TKN", 18n]);
    assert.equal(BigInt(values[3]), await at.Token.totalSupply());
  });

  await test("fees agree with the newest block", async () => {
    const [fees, head] = [await provider.getFeeData(), await provider.getBlock("latest")];
    assert.equal(fees.maxFeePerGas, 2n * head.baseFeePerGas + fees.maxPriorityFeePerGas);
    const { maxPriorityFeePerGas } = fees;
    assert.equal(maxPriorityFeePerGas, BigInt(await provider.send("eth_maxPriorityFeePerGas", [])));
    for (const tag of ["safe", "finalized"]) assert.ok((await provider.getBlock(tag)).number <= head.number);
  });

  await test("the past, a proof, an access list and a trace, by send", async () => {
    const number = await provider.getBlockNumber();
    const before = await at.Token.balanceOf(BEEF);
    const { hash } = await mined(at.Token.transfer(BEEF, 10n));
    assert.equal(await at.Token.balanceOf(BEEF), before + 10n);
    assert.equal(await at.Token.balanceOf(BEEF, { blockTag: number }), before);
    assert.equal(await provider.getBalance(alice.address, 0), FUNDS);

    const answer = await provider.send("eth_getProof", [at.Token.target, [ethers.toBeHex(2, 32)], "latest"]);
    const { stateRoot } = await provider.getBlock("latest");
    const proof = { ...answer, nonce: Number(answer.nonce), balance: BigInt(answer.balance) };
    assert.equal(verifyProof(stateRoot, proof), true);
    assert.equal(BigInt(answer.storageProof[0].value), await at.Token.totalSupply());

    const call = { from: alice.address, to: at.Token.target, data: at.Token.interface.encodeFunctionData("transfer", [BEEF, 1n]) };
    const { accessList } = await provider.send("eth_createAccessList", [call, "latest"]);
    assert.deepEqual(accessList.map(({ address, storageKeys }) => [ethers.getAddress(address), storageKeys.length]), [[at.Token.target, 2]]);

    const trace = await provider.send("debug_traceTransaction", [hash, { tracer: "callTracer", tracerConfig: { withLog: true } }]);
    assert.equal(trace.output, ethers.toBeHex(1, 32));
    assert.equal(trace.logs.length, 1);
    assert.equal(trace.logs[0].topics[0], ethers.id("Transfer(address,address,uint256)"));
  });

  provider.destroy();
  await test("nothing else was asked", async () => {
    const bad = [...proxy.calls].filter(([, seen]) => seen.n_ok === 0).map(([method, seen]) => `${method}: ${[...seen.errors]}`);
    assert.deepEqual(bad, []);
    assert.ok(node.http);
  });
}
