// A chain with a block at intervals: what is accepted can be read at once as pending, and waits for its block.
import assert from "node:assert/strict";
import { connect } from "./viem.mjs";
import { FUNDS, artifact, viem } from "./tools.mjs";

const CAFE = "0x000000000000000000000000000000000000cafe";

export async function interval({ test, start }) {
  await test("pending state, before the block is closed", async () => {
    const { proxy, stop } = await start("--block-time", "3600");
    try {
      const { reader, wallet, options } = connect(proxy.http);
      const alice = wallet(0);
      const address = alice.account.address;
      const dev = viem.createTestClient({ ...options, mode: "anvil" });
      const { abi, bytecode } = artifact("Token");
      const deployed = await alice.deployContract({ abi, bytecode, args: [[address], 100n] });
      const token = { abi, address: viem.getContractAddress({ from: address, nonce: 0n }) };
      const call = viem.encodeFunctionData({ abi, functionName: "transfer", args: [CAFE, 7n] });
      const moved = await alice.sendTransaction({ to: token.address, data: call, gas: 100_000n });
      const paid = await alice.sendTransaction({ to: CAFE, value: 9n });

      const balanceOf = (blockTag) => reader.readContract({ ...token, functionName: "balanceOf", args: [CAFE], blockTag });
      assert.equal(await balanceOf("pending"), 7n);
      await assert.rejects(balanceOf("latest"));
      assert.deepEqual(
        [await reader.getBalance({ address: CAFE, blockTag: "pending" }), await reader.getBalance({ address: CAFE })],
        [9n, 0n],
      );
      assert.deepEqual(
        [await reader.getTransactionCount({ address, blockTag: "pending" }), await reader.getTransactionCount({ address })],
        [3, 0],
      );
      assert.equal(await reader.getBalance({ address }), FUNDS);
      assert.deepEqual((await reader.getBlock({ blockTag: "pending" })).transactions, [deployed, moved, paid]);
      assert.equal(await reader.getBlockNumber(), 0n);
      await dev.mine({ blocks: 1 });

      const receipts = await Promise.all([deployed, moved, paid].map((hash) => reader.waitForTransactionReceipt({ hash })));
      assert.deepEqual(receipts.map(({ status, blockNumber, transactionIndex }) => [status, blockNumber, transactionIndex]), [0, 1, 2].map((i) => ["success", 1n, i]));
      assert.equal(await balanceOf("latest"), 7n);
      assert.equal(await reader.getTransactionCount({ address }), 3);
      assert.deepEqual((await reader.getBlock({ blockNumber: 1n })).transactions, [deployed, moved, paid]);
    } finally {
      await stop();
    }
  });

  await test("waiting for receipts of a block a second", async () => {
    const { proxy, stop } = await start("--block-time", "1");
    try {
      const { reader, wallet } = connect(proxy.http);
      const alice = wallet(0);
      let last = 0n;
      for (let nonce = 0; nonce < 3; nonce++) {
        const hash = await alice.sendTransaction({ to: CAFE, value: 1n });
        const receipt = await reader.waitForTransactionReceipt({ hash });
        assert.equal(receipt.status, "success");
        assert.ok(receipt.blockNumber > last);
        last = receipt.blockNumber;
      }
      const hashes = [];
      for (let i = 0; i < 30; i++) hashes.push(await alice.sendTransaction({ to: CAFE, value: 1n, gas: 21_000n }));
      const receipts = await Promise.all(hashes.map((hash) => reader.waitForTransactionReceipt({ hash })));
      const places = receipts.map(({ blockNumber, transactionIndex }) => Number(blockNumber) * 1_000 + transactionIndex);
      assert.deepEqual(places, [...places].sort((a, b) => a - b));
      assert.equal(await reader.getBalance({ address: CAFE }), 33n);
    } finally {
      await stop();
    }
  });
}
