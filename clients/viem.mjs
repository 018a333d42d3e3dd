// viem: what an application does, from deployment to proofs.
import assert from "node:assert/strict";
import { interval } from "./interval.mjs";
import { CHAIN_ID, FUNDS, KEYS, artifact, nonceManager, privateKeyToAccount, rpc, until, viem } from "./tools.mjs";
import { verifyProof } from "./proof.mjs";

const { encodeFunctionData, getContractAddress, parseEther } = viem;

/** EIP-1967: where a proxy keeps the address of its implementation. */
const IMPLEMENTATION_SLOT = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";
const BEEF = "0x000000000000000000000000000000000000beef";
const CAFE = "0x000000000000000000000000000000000000cafe";

/** The clients on one endpoint; `pollingInterval` is short so that nothing here waits for long. */
export function connect(url, { ws = false, batch = false } = {}) {
  const transport = ws ? viem.webSocket(url, { reconnect: false }) : viem.http(url, { batch, retryCount: 0 });
  const chain = viem.defineChain({
    id: CHAIN_ID,
    name: "OpenLedger",
    nativeCurrency: { name: "OPEN", symbol: "OPEN", decimals: 18 },
    rpcUrls: { default: { http: [url] } },
  });
  const options = { chain, transport, pollingInterval: 50, cacheTime: 0 };
  const wallet = (i, extra = {}) =>
    viem.createWalletClient({ ...options, account: privateKeyToAccount(KEYS[i], extra) });
  return { reader: viem.createPublicClient(options), wallet, options };
}

export default async function run({ test, node, proxy, start }) {
  const { reader, wallet, options } = connect(proxy.http);
  const alice = wallet(0);
  const bob = wallet(1);
  const [A, B] = [alice.account.address, bob.account.address];
  const at = {};

  const mined = async (hash) => {
    const receipt = await reader.waitForTransactionReceipt({ hash, timeout: 20_000 });
    assert.equal(receipt.status, "success");
    return receipt;
  };
  const deploy = async (name, args = [], file = name) => {
    const { abi, bytecode } = artifact(name, file);
    const receipt = await mined(await alice.deployContract({ abi, bytecode, args }));
    at[name] = { abi, address: viem.getAddress(receipt.contractAddress) };
    return receipt;
  };
  const read = (contract, functionName, args = [], more = {}) =>
    reader.readContract({ ...contract, functionName, args, ...more });
  const write = (client, contract, functionName, args = [], more = {}) =>
    client.writeContract({ ...contract, functionName, args, ...more });
  /** What a call that must revert says, as viem decodes it. */
  const revert = async (work) => {
    const error = await work.then(
      () => assert.fail("it did not revert"),
      (error) => error,
    );
    const found = error.walk?.((cause) => cause instanceof viem.ContractFunctionRevertedError);
    assert.ok(found, `not a decoded revert: ${error.message}`);
    return found;
  };

  await test("the chain says what it is", async () => {
    assert.equal(await reader.getChainId(), CHAIN_ID);
    assert.equal(await reader.getBlockNumber(), 0n);
    assert.equal(await reader.request({ method: "net_version" }), String(CHAIN_ID));
    assert.match(await reader.request({ method: "web3_clientVersion" }), /^openledger\/v/);
    assert.equal(await reader.request({ method: "eth_syncing" }), false);
    const genesis = await reader.getBlock({ blockNumber: 0n });
    assert.equal(genesis.parentHash, viem.zeroHash);
    assert.equal((await reader.getBlock({ blockHash: genesis.hash })).stateRoot, genesis.stateRoot);
    assert.equal((await reader.getBlock({ blockTag: "earliest" })).hash, genesis.hash);
    assert.equal(await reader.getBalance({ address: A }), FUNDS);
  });

  await test("deploys an ERC-20 and pays exactly its gas", async () => {
    const receipt = await deploy("Token", [[A, B], parseEther("1000")]);
    assert.equal(at.Token.address, getContractAddress({ from: A, nonce: 0n }));
    assert.equal(receipt.blockNumber, 1n);
    assert.equal(receipt.type, "eip1559");
    const block = await reader.getBlock({ blockNumber: 1n });
    assert.deepEqual(block.transactions, [receipt.transactionHash]);
    assert.equal(block.gasUsed, receipt.gasUsed);
    const tip = receipt.effectiveGasPrice - block.baseFeePerGas;
    const sent = await reader.getTransaction({ hash: receipt.transactionHash });
    assert.equal(sent.maxPriorityFeePerGas, tip);
    assert.equal(await reader.getBalance({ address: A }), FUNDS - receipt.gasUsed * receipt.effectiveGasPrice);
    const events = viem.parseEventLogs({ abi: at.Token.abi, logs: receipt.logs });
    assert.deepEqual(
      events.map((event) => event.eventName),
      ["RoleGranted", "Transfer", "Transfer"],
    );
    assert.deepEqual(events[2].args, { from: viem.zeroAddress, to: B, value: parseEther("1000") });
    assert.equal(await read(at.Token, "totalSupply"), parseEther("2000"));
    const { deployedBytecode } = { deployedBytecode: await reader.getCode({ address: at.Token.address }) };
    assert.ok(deployedBytecode.length > 5_000);
  });

  await test("simulates, estimates and sends a transfer", async () => {
    const call = { ...at.Token, functionName: "transfer", args: [BEEF, 5n] };
    const { request, result } = await reader.simulateContract({ ...call, account: alice.account });
    assert.equal(result, true);
    const estimate = await reader.estimateContractGas({ ...call, account: A });
    const receipt = await mined(await alice.writeContract(request));
    assert.ok(estimate >= receipt.gasUsed && estimate < (receipt.gasUsed * 6n) / 5n, `${estimate} ${receipt.gasUsed}`);
    assert.equal(await read(at.Token, "balanceOf", [BEEF]), 5n);
    assert.equal(await reader.estimateGas({ account: A, to: BEEF, value: 1n }), 21_000n);
  });

  await test("every kind of transaction but blobs", async () => {
    const accessList = [{ address: at.Token.address, storageKeys: [viem.zeroHash] }];
    for (const [type, more] of [
      ["legacy", { gasPrice: 5_000_000_000n }],
      ["eip2930", { gasPrice: 5_000_000_000n, accessList }],
      ["eip1559", { accessList }],
    ]) {
      const hash = await alice.sendTransaction({ type, to: CAFE, value: 1n, ...more });
      const receipt = await mined(hash);
      assert.equal(receipt.type, type);
      const sent = await reader.getTransaction({ hash });
      assert.equal(sent.type, type);
      assert.equal(sent.from.toLowerCase(), A.toLowerCase());
      assert.equal(receipt.gasUsed, type === "legacy" ? 21_000n : 21_000n + 2_400n + 1_900n);
    }
    assert.equal(await reader.getBalance({ address: CAFE }), 3n);
  });

  await test("permit: a signature instead of a transaction", async () => {
    const message = { owner: A, spender: B, value: 77n, nonce: 0n, deadline: 4_102_444_800n };
    const signature = await alice.signTypedData({
      domain: { name: "Token", version: "1", chainId: CHAIN_ID, verifyingContract: at.Token.address },
      types: {
        Permit: ["owner address", "spender address", "value uint256", "nonce uint256", "deadline uint256"].map((field) => {
          const [name, type] = field.split(" ");
          return { name, type };
        }),
      },
      primaryType: "Permit",
      message,
    });
    const { r, s, yParity } = viem.parseSignature(signature);
    await mined(await write(bob, at.Token, "permit", [A, B, 77n, message.deadline, yParity + 27, r, s]));
    assert.equal(await read(at.Token, "allowance", [A, B]), 77n);
    assert.equal(await read(at.Token, "nonces", [A]), 1n);
    await mined(await write(bob, at.Token, "transferFrom", [A, B, 70n]));
    assert.equal(await read(at.Token, "allowance", [A, B]), 7n);
    assert.equal(await read(at.Token, "balanceOf", [B]), parseEther("1000") + 70n);
    assert.equal(await reader.verifyMessage({ address: A, message: "hi", signature: await alice.signMessage({ message: "hi" }) }), true);
  });

  await test("reverts are decoded: reason, panic, custom error, none", async () => {
    await deploy("Failures", [], "Tools");
    const fail = (name, args) => revert(read(at.Failures, name, args, { account: A }));
    const custom = await fail("custom", [9n]);
    assert.equal(custom.data.errorName, "Refused");
    assert.deepEqual(custom.data.args, [A, 9n, "because"]);
    assert.equal((await fail("reason")).reason, "plain reason");
    const panic = await fail("overflow", [2n ** 256n - 1n]);
    assert.deepEqual([panic.data.errorName, panic.data.args], ["Panic", [17n]]);
    assert.equal((await fail("silent")).data, undefined);
    assert.deepEqual((await fail("nested", [3n])).data.args, [at.Failures.address, 3n, "because"]);
    const poor = await revert(reader.simulateContract({ ...at.Token, functionName: "transfer", args: [A, 6n], account: BEEF }));
    assert.deepEqual([poor.data.errorName, poor.data.args], ["ERC20InsufficientBalance", [viem.getAddress(BEEF), 5n, 6n]]);
    const role = await read(at.Token, "MINTER");
    const denied = await revert(write(bob, at.Token, "mint", [B, 1n]));
    assert.deepEqual([denied.data.errorName, denied.data.args], ["AccessControlUnauthorizedAccount", [B, role]]);
    await mined(await write(alice, at.Token, "grantRole", [role, B]));
    await mined(await write(bob, at.Token, "mint", [B, 1n]));
  });

  await test("a transaction that reverts is in a block and has paid", async () => {
    const hash = await write(alice, at.Failures, "reason", [], { gas: 100_000n });
    const receipt = await reader.waitForTransactionReceipt({ hash });
    assert.equal(receipt.status, "reverted");
    assert.deepEqual(receipt.logs, []);
    assert.ok(receipt.gasUsed > 21_000n && receipt.gasUsed < 30_000n);
  });

  await test("ERC-721: minting, owners, and who may not", async () => {
    await deploy("Badge");
    const receipt = await mined(await write(alice, at.Badge, "mint", [B, 7n]));
    const [event] = viem.parseEventLogs({ abi: at.Badge.abi, logs: receipt.logs });
    assert.deepEqual(event.args, { from: viem.zeroAddress, to: B, tokenId: 7n });
    assert.equal(await read(at.Badge, "ownerOf", [7n]), B);
    const denied = await revert(write(bob, at.Badge, "mint", [B, 8n]));
    assert.deepEqual([denied.data.errorName, denied.data.args], ["OwnableUnauthorizedAccount", [B]]);
    assert.equal((await revert(read(at.Badge, "ownerOf", [8n]))).data.errorName, "ERC721NonexistentToken");
  });

  await test("a proxy is deployed, used and upgraded", async () => {
    await deploy("Box");
    await deploy("BoxTwo", [], "Box");
    const initialise = encodeFunctionData({ abi: at.Box.abi, functionName: "initialize", args: [41n] });
    await deploy("BoxProxy", [at.Box.address, initialise], "Box");
    const box = { abi: at.BoxTwo.abi, address: at.BoxProxy.address };
    const implementation = async () =>
      viem.getAddress(viem.slice(await reader.getStorageAt({ address: box.address, slot: IMPLEMENTATION_SLOT }), 12));
    assert.equal(await implementation(), at.Box.address);
    assert.deepEqual([await read(box, "version"), await read(box, "value")], [1n, 41n]);
    const denied = await revert(write(bob, box, "upgradeToAndCall", [at.BoxTwo.address, "0x"]));
    assert.equal(denied.data.errorName, "NotKeeper");
    // The constructor of the proxy called initialize, so the deploying transaction's proxy is the keeper's caller.
    assert.equal(await read(box, "keeper"), A);
    const increment = encodeFunctionData({ abi: box.abi, functionName: "increment" });
    await mined(await write(alice, box, "upgradeToAndCall", [at.BoxTwo.address, increment]));
    assert.equal(await implementation(), at.BoxTwo.address);
    assert.deepEqual([await read(box, "version"), await read(box, "value")], [2n, 42n]);
    assert.equal((await revert(write(alice, box, "initialize", [1n]))).data.errorName, "InvalidInitialization");
  });

  await test("multicall reads many values, one of them a failure", async () => {
    await deploy("Multicall", [], "Tools");
    const results = await reader.multicall({
      multicallAddress: at.Multicall.address,
      contracts: [
        { ...at.Token, functionName: "balanceOf", args: [BEEF] },
        { ...at.Badge, functionName: "ownerOf", args: [8n] },
        { ...at.Badge, functionName: "ownerOf", args: [7n] },
      ],
    });
    assert.deepEqual(
      results.map(({ status, result }) => [status, result]),
      [["success", 5n], ["failure", undefined], ["success", B]],
    );
  });

  await test("EIP-7702: an account delegates and does two things at once", async () => {
    await deploy("Batch", [], "Tools");
    const carol = wallet(2);
    const C = carol.account.address;
    const authorization = await carol.signAuthorization({ contractAddress: at.Batch.address, executor: "self" });
    const data = encodeFunctionData({
      abi: at.Batch.abi,
      functionName: "execute",
      args: [[{ to: "0x000000000000000000000000000000000000d00d", value: 3n, data: "0x" }, { to: "0x000000000000000000000000000000000000d00e", value: 4n, data: "0x" }]],
    });
    const receipt = await mined(await carol.sendTransaction({ authorizationList: [authorization], to: C, data }));
    assert.equal(receipt.type, "eip7702");
    assert.equal(await reader.getCode({ address: C }), `0xef0100${at.Batch.address.slice(2).toLowerCase()}`);
    assert.equal(await reader.getBalance({ address: "0x000000000000000000000000000000000000d00e" }), 4n);
    assert.equal(await reader.getTransactionCount({ address: C }), 2);
    const [event] = viem.parseEventLogs({ abi: at.Batch.abi, logs: receipt.logs });
    assert.deepEqual([event.address, event.args], [C.toLowerCase(), { calls: 2n }]);
    const sent = await reader.getTransaction({ hash: receipt.transactionHash });
    assert.equal(sent.authorizationList.length, 1);
    const denied = await revert(write(bob, { abi: at.Batch.abi, address: C }, "execute", [[]]));
    assert.deepEqual([denied.data.errorName, denied.data.args], ["NotSelf", [B]]);
    const undo = await carol.signAuthorization({ contractAddress: viem.zeroAddress, executor: "self" });
    await mined(await carol.sendTransaction({ authorizationList: [undo], to: C, data: "0x" }));
    assert.equal(await reader.getCode({ address: C }), undefined);
  });

  await test("fees: estimate, price and history agree with the blocks", async () => {
    const head = await reader.getBlock();
    const history = await reader.getFeeHistory({ blockCount: 4, rewardPercentiles: [25, 75] });
    assert.equal(history.oldestBlock, head.number - 3n);
    assert.equal(history.baseFeePerGas.length, 5);
    assert.equal(history.gasUsedRatio.length, 4);
    assert.equal(history.reward.length, 4);
    assert.equal(history.baseFeePerGas[3], head.baseFeePerGas);
    assert.equal(history.gasUsedRatio[3], Number(head.gasUsed) / Number(head.gasLimit));
    const tip = await reader.estimateMaxPriorityFeePerGas();
    const fees = await reader.estimateFeesPerGas();
    assert.equal(fees.maxPriorityFeePerGas, tip);
    assert.equal(fees.maxFeePerGas, (head.baseFeePerGas * 12n) / 10n + tip);
    const [newest, next] = history.baseFeePerGas.slice(3);
    assert.equal(await reader.getGasPrice(), (newest > next ? newest : next) + tip);
  });

  await test("events by a subscription over WebSocket", async () => {
    const { reader: socket } = connect(proxy.ws, { ws: true });
    const [events, heads, pending, errors] = [[], [], [], []];
    const onError = (error) => errors.push(error);
    const stops = [
      socket.watchContractEvent({ ...at.Token, eventName: "Transfer", args: { from: A }, onLogs: (logs) => events.push(...logs), onError }),
      socket.watchBlocks({ onBlock: (block) => heads.push(block), onError }),
      socket.watchPendingTransactions({ onTransactions: (hashes) => pending.push(...hashes), onError }),
    ];
    // The three subscriptions are in place once a later call on the connection is answered.
    const before = await socket.getBlockNumber();
    await until("three subscriptions", () => errors.length > 0 || proxy.calls.get("eth_subscribe")?.n_ok >= 3);
    assert.deepEqual(errors, []);
    const hashes = [];
    for (const value of [1n, 2n, 3n]) hashes.push((await mined(await write(alice, at.Token, "transfer", [CAFE, value]))).transactionHash);
    await until("all events", () => events.length >= 3 && heads.length >= 3 && pending.length >= 3);
    assert.deepEqual(events.map(({ args }) => args), [1n, 2n, 3n].map((value) => ({ from: A, to: viem.getAddress(CAFE), value })));
    assert.deepEqual(events.map(({ transactionHash }) => transactionHash), hashes);
    assert.deepEqual(heads.map(({ number }) => number), [1n, 2n, 3n].map((i) => before + i));
    assert.deepEqual(pending, hashes);
    for (const stop of stops) stop();
    await until("three are given up", () => proxy.calls.get("eth_unsubscribe")?.n_ok >= 3);
    const client = await socket.transport.getRpcClient();
    client.close();
  });

  await test("events by polling a filter over HTTP", async () => {
    const events = [];
    const stop = reader.watchContractEvent({ ...at.Token, eventName: "Transfer", onLogs: (logs) => events.push(...logs), poll: true });
    await until("the filter", () => proxy.calls.get("eth_getFilterChanges")?.n_ok >= 1);
    await mined(await write(bob, at.Token, "transfer", [CAFE, 4n]));
    await until("the event", () => events.length >= 1);
    stop();
    assert.deepEqual(events.map(({ args }) => args.value), [4n]);
    const filter = await reader.createEventFilter({ address: at.Token.address, fromBlock: 0n });
    const all = await reader.getFilterLogs({ filter });
    assert.equal(all.length, (await reader.getLogs({ address: at.Token.address, fromBlock: 0n })).length);
    assert.equal(await reader.uninstallFilter({ filter }), true);
    assert.equal(await reader.uninstallFilter({ filter }), false);
    const blocks = await reader.createBlockFilter();
    const { blockHash } = await mined(await write(alice, at.Token, "transfer", [CAFE, 1n]));
    assert.deepEqual(await reader.getFilterChanges({ filter: blocks }), [blockHash]);
  });

  await test("fifty sends at once with a nonce manager", async () => {
    const dave = wallet(3, { nonceManager });
    const first = await reader.getBlockNumber();
    const hashes = await Promise.all(
      Array.from({ length: 50 }, (_, i) => dave.sendTransaction({ to: at.Token.address, data: "0x18160ddd", gas: 60_000n + BigInt(i) })),
    );
    const receipts = await Promise.all(hashes.map(mined));
    const sent = await Promise.all(hashes.map((hash) => reader.getTransaction({ hash })));
    assert.deepEqual(sent.map(({ nonce }) => nonce).sort((a, b) => a - b), Array.from({ length: 50 }, (_, i) => i));
    const order = receipts.map((receipt, i) => [receipt.blockNumber, receipt.transactionIndex, sent[i].nonce]);
    order.sort((a, b) => Number(a[0] - b[0]) || a[1] - b[1]);
    assert.deepEqual(order.map(([, , nonce]) => nonce), Array.from({ length: 50 }, (_, i) => i));
    assert.ok(order[49][0] > first);
    assert.equal(await reader.getTransactionCount({ address: dave.account.address }), 50);
  });

  await test("logs in pages are all logs, once, in order", async () => {
    for (let i = 0n; i < 12n; i++) await mined(await write(alice, at.Token, "transfer", [BEEF, 100n + i]));
    const head = await reader.getBlockNumber();
    const query = { address: at.Token.address, event: viem.getAbiItem({ abi: at.Token.abi, name: "Transfer" }), args: { to: BEEF } };
    const pages = [];
    for (let fromBlock = 0n; fromBlock <= head; fromBlock += 7n) {
      const toBlock = fromBlock + 6n < head ? fromBlock + 6n : head;
      pages.push(...(await reader.getLogs({ ...query, fromBlock, toBlock })));
    }
    assert.deepEqual(pages.map(({ args }) => args.value), [5n, ...Array.from({ length: 12 }, (_, i) => 100n + BigInt(i))]);
    assert.deepEqual(pages, await reader.getLogs({ ...query, fromBlock: "earliest" }));
    const one = pages[3];
    assert.deepEqual(await reader.getLogs({ ...query, blockHash: one.blockHash }), [one]);
    const events = await reader.getContractEvents({ ...at.Token, eventName: "Transfer", args: { to: BEEF }, fromBlock: 0n });
    assert.deepEqual(events.map(({ logIndex, blockNumber }) => [blockNumber, logIndex]), pages.map(({ logIndex, blockNumber }) => [blockNumber, logIndex]));
  });

  await test("a batch of calls is one request", async () => {
    const { reader: batching } = connect(proxy.http, { batch: true });
    const before = proxy.stats.n_batches;
    const values = await Promise.all([
      batching.getBalance({ address: CAFE }),
      batching.getTransactionCount({ address: A }),
      batching.readContract({ ...at.Token, functionName: "symbol" }),
      batching.getStorageAt({ address: at.Token.address, slot: "0x2" }),
    ]);
    assert.equal(proxy.stats.n_batches, before + 1);
    assert.equal(values[0], 3n);
    assert.equal(values[2], "TKN");
    assert.equal(BigInt(values[3]), await read(at.Token, "totalSupply"));
  });

  await test("proofs hold against the state root, for what is there and what is not", async () => {
    const slot = viem.keccak256(viem.encodeAbiParameters([{ type: "address" }, { type: "uint256" }], [B, 0n]));
    const prove = (address, storageKeys) => reader.getProof({ address, storageKeys });
    const { stateRoot } = await reader.getBlock();
    const token = await prove(at.Token.address, [slot, viem.toHex(12_345n, { size: 32 })]);
    assert.equal(verifyProof(stateRoot, token), true);
    assert.equal(token.storageProof[0].value, await read(at.Token, "balanceOf", [B]));
    assert.equal(token.storageProof[1].value, 0n);
    assert.equal(verifyProof(stateRoot, await prove(A, [])), true);
    assert.equal(verifyProof(stateRoot, await prove("0x000000000000000000000000000000000000f00d", [])), false);
    token.storageProof[0].value += 1n;
    assert.throws(() => verifyProof(stateRoot, token));
  });

  await test("the past can be read", async () => {
    const before = await reader.getBlockNumber();
    const past = { blockNumber: before };
    const [coins, nonce, tokens] = [
      await reader.getBalance({ address: CAFE }),
      await reader.getTransactionCount({ address: A }),
      await read(at.Token, "balanceOf", [BEEF]),
    ];
    await mined(await alice.sendTransaction({ to: CAFE, value: 10n }));
    await mined(await write(alice, at.Token, "transfer", [BEEF, 10n]));
    assert.equal(await reader.getBalance({ address: CAFE }), coins + 10n);
    assert.equal(await reader.getBalance({ address: CAFE, ...past }), coins);
    assert.equal(await reader.getTransactionCount({ address: A, ...past }), nonce);
    assert.equal(await read(at.Token, "balanceOf", [BEEF], past), tokens);
    assert.equal(await read(at.Token, "balanceOf", [BEEF]), tokens + 10n);
    assert.equal(await reader.getCode({ address: at.Token.address, blockNumber: 0n }), undefined);
    assert.equal(await reader.getBalance({ address: A, blockNumber: 0n }), FUNDS);
    const box = { address: at.BoxProxy.address, slot: "0x0", blockNumber: 0n };
    assert.equal(BigInt((await reader.getStorageAt(box)) ?? 0), 0n);
    await assert.rejects(reader.getBalance({ address: A, blockNumber: before + 1_000n }));
  });

  await test("traces of a transaction and of a call", async () => {
    const hash = await write(alice, at.Failures, "nested", [5n], { gas: 200_000n });
    await reader.waitForTransactionReceipt({ hash });
    const frame = await reader.request({ method: "debug_traceTransaction", params: [hash, { tracer: "callTracer" }] });
    assert.equal(frame.type, "CALL");
    assert.equal(frame.error, "execution reverted");
    assert.equal(frame.calls.length, 1);
    assert.equal(frame.calls[0].type, "STATICCALL");
    assert.equal(frame.calls[0].from, at.Failures.address.toLowerCase());
    const receipt = await reader.getTransactionReceipt({ hash });
    assert.equal(BigInt(frame.gasUsed), receipt.gasUsed);
    const input = encodeFunctionData({ abi: at.Token.abi, functionName: "transfer", args: [BEEF, 1n] });
    const prestate = await reader.request({
      method: "debug_traceCall",
      params: [{ from: A, to: at.Token.address, data: input }, "latest", { tracer: "prestateTracer" }],
    });
    assert.ok(Object.keys(prestate).includes(at.Token.address.toLowerCase()));
  });

  await test("access lists, overrides and simulation", async () => {
    const call = { to: at.Token.address, data: encodeFunctionData({ abi: at.Token.abi, functionName: "transfer", args: [BEEF, 1n] }) };
    const { accessList, gasUsed } = await reader.createAccessList({ account: A, ...call });
    assert.equal(accessList.length, 1);
    assert.equal(accessList[0].address.toLowerCase(), at.Token.address.toLowerCase());
    assert.equal(accessList[0].storageKeys.length, 2);
    assert.ok(gasUsed > 21_000n);
    const stateOverride = [{ address: "0x000000000000000000000000000000000000f00d", balance: 5n }];
    const poor = "0x000000000000000000000000000000000000f00d";
    await assert.rejects(reader.call({ account: poor, to: CAFE, value: 5n }));
    await reader.call({ account: poor, to: CAFE, value: 5n, stateOverride });
    const slot = viem.keccak256(viem.encodeAbiParameters([{ type: "address" }, { type: "uint256" }], [CAFE, 0n]));
    const overridden = await read(at.Token, "balanceOf", [CAFE], {
      stateOverride: [{ address: at.Token.address, stateDiff: [{ slot, value: viem.toHex(999n, { size: 32 }) }] }],
    });
    assert.equal(overridden, 999n);
    const { results } = await reader.simulateCalls({
      account: A,
      calls: [
        { ...at.Token, to: at.Token.address, functionName: "transfer", args: [poor, 8n] },
        { ...at.Token, to: at.Token.address, functionName: "balanceOf", args: [poor] },
      ],
    });
    assert.deepEqual(results.map(({ status, result }) => [status, result]), [["success", true], ["success", 8n]]);
    assert.equal(await read(at.Token, "balanceOf", [poor]), 0n);
  });

  await test("what the chain refuses has the class that viem knows", async () => {
    const error = async (work) => {
      const found = await work.then(() => assert.fail("it was accepted"), (error) => error);
      return found.walk((cause) => /Nonce|Funds|Intrinsic|Fee/.test(cause.name))?.name ?? found.details ?? found.message;
    };
    const gas = { gas: 21_000n, maxFeePerGas: 5_000_000_000n, maxPriorityFeePerGas: 1n };
    assert.equal(await error(alice.sendTransaction({ to: CAFE, nonce: 0, ...gas })), "NonceTooLowError");
    assert.equal(await error(wallet(4).sendTransaction({ to: CAFE, value: FUNDS, ...gas })), "InsufficientFundsError");
    assert.equal(await error(alice.sendTransaction({ to: CAFE, ...gas, gas: 20_000n })), "IntrinsicGasTooLowError");
    assert.equal(await error(reader.call({ account: A, to: CAFE, ...gas, maxFeePerGas: 1n })), "FeeCapTooLowError");
    const foreign = await alice.account.signTransaction({ chainId: 1, type: "eip1559", nonce: 99, to: CAFE, ...gas });
    assert.match(await error(reader.sendRawTransaction({ serializedTransaction: foreign })), /chain/i);
  });

  await test("a receipt at once: eth_sendRawTransactionSync", async () => {
    const receipt = await alice.sendTransactionSync({ to: CAFE, value: 1n });
    assert.equal(receipt.status, "success");
    assert.equal(receipt.gasUsed, 21_000n);
  });

  await test("the pool is empty once all is in blocks", async () => {
    const pool = viem.createTestClient({ ...options, mode: "anvil" });
    assert.deepEqual(await pool.getTxpoolStatus(), { pending: 0, queued: 0 });
    const nonce = await reader.getTransactionCount({ address: A });
    const gas = { gas: 21_000n, maxFeePerGas: 5_000_000_000n, maxPriorityFeePerGas: 1n };
    const later = await alice.sendTransaction({ to: CAFE, value: 1n, nonce: nonce + 1, ...gas });
    assert.deepEqual(await pool.getTxpoolStatus(), { pending: 0, queued: 1 });
    const content = await pool.getTxpoolContent();
    assert.deepEqual(Object.keys(content.queued).map(viem.getAddress), [A]);
    await mined(await alice.sendTransaction({ to: CAFE, value: 1n, nonce, ...gas }));
    await mined(later);
    assert.deepEqual(await pool.getTxpoolStatus(), { pending: 0, queued: 0 });
  });

  await test("development: time, mining, balances, snapshots", async () => {
    const dev = viem.createTestClient({ ...options, mode: "anvil" });
    const before = await reader.getBlock();
    await dev.mine({ blocks: 3 });
    assert.equal(await reader.getBlockNumber(), before.number + 3n);
    const { timestamp } = await reader.getBlock();
    await dev.setNextBlockTimestamp({ timestamp: timestamp + 1_000n });
    await dev.mine({ blocks: 1 });
    assert.equal((await reader.getBlock()).timestamp, timestamp + 1_000n);
    await dev.increaseTime({ seconds: 500 });
    await dev.mine({ blocks: 1 });
    assert.ok((await reader.getBlock()).timestamp >= timestamp + 1_500n);
    const rich = "0x000000000000000000000000000000000000abcd";
    await dev.setBalance({ address: rich, value: parseEther("3") });
    assert.equal(await reader.getBalance({ address: rich }), parseEther("3"));
    const id = await dev.snapshot();
    await mined(await alice.sendTransaction({ to: CAFE, value: 1_000n }));
    const spent = await reader.getBalance({ address: CAFE });
    await dev.revert({ id });
    assert.equal(await reader.getBalance({ address: CAFE }), spent - 1_000n);
  });

  await test("blocks and transactions, by every way to name them", async () => {
    const hash = (await mined(await alice.sendTransaction({ to: CAFE, value: 1n }))).transactionHash;
    const receipt = await reader.getTransactionReceipt({ hash });
    const { blockHash, blockNumber, transactionIndex: index } = receipt;
    const full = await reader.getBlock({ blockNumber, includeTransactions: true });
    assert.equal(full.transactions[index].hash, hash);
    assert.equal((await reader.getTransaction({ blockHash, index })).hash, hash);
    assert.equal((await reader.getTransaction({ blockNumber, index })).hash, hash);
    assert.equal(await reader.getBlockTransactionCount({ blockNumber }), full.transactions.length);
    assert.equal(await reader.getBlockTransactionCount({ blockHash }), full.transactions.length);
    assert.equal(await reader.getTransactionConfirmations({ hash }), 1n);
    for (const blockTag of ["latest", "safe", "finalized"]) assert.equal((await reader.getBlock({ blockTag })).hash, blockHash);
    await assert.rejects(reader.getTransaction({ hash: viem.zeroHash }), viem.TransactionNotFoundError);
    await assert.rejects(reader.getTransactionReceipt({ hash: viem.zeroHash }), viem.TransactionReceiptNotFoundError);
    await assert.rejects(reader.getBlock({ blockNumber: blockNumber + 100n }), viem.BlockNotFoundError);
    const [direct] = await rpc(node.http, "eth_getBlockReceipts", [blockHash]);
    assert.equal(direct.transactionHash, hash);
  });

  await interval({ test, start });
}
