// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {INFERENCE_SETTLEMENT, OPEN, OPEN_TRANSFER} from "../src/l2/Addresses.sol";
import {ModelRegistry} from "../src/l2/ModelRegistry.sol";
import {Receipt} from "../src/l2/Receipt.sol";
import {SettlementBase} from "./InferenceSettlement.t.sol";

/// @dev Does what users, the operator and a model's owner may do, in any order and with any numbers.
contract Handler is SettlementBase {
    address[] public accounts;
    uint256 public settlements;

    constructor(bytes32 model_, address[] memory accounts_) {
        model = model_;
        accounts = accounts_;
        query = flat(1);
    }

    function pick(uint256 seed) private view returns (address) {
        return accounts[seed % accounts.length];
    }

    function deposit(uint256 from, uint256 to, uint256 amount) external {
        address sender = pick(from);
        amount %= sender.balance + 1;
        vm.prank(sender);
        settlement.depositFor{value: amount}(pick(to));
    }

    function withdraw(uint256 who, uint256 amount) external {
        address account = pick(who);
        amount %= settlement.prepaid(account) + 1;
        vm.prank(account);
        settlement.withdraw(amount);
    }

    function claim(uint256 who, uint256 to) external {
        address account = pick(who);
        if (settlement.credit(account) == 0) return;
        vm.prank(account);
        settlement.claim(pick(to));
    }

    function transfer(uint256 from, uint256 to, uint256 amount) external {
        address sender = pick(from);
        amount %= sender.balance + 1;
        vm.prank(sender);
        open.transfer(pick(to), amount);
    }

    function price(uint128 priceIn, uint128 flatFee, uint16 contributorsBps, uint64 nullThreshold) external {
        (,, ModelRegistry.Params memory params) = models.current(model);
        params.priceInPerKTokens = priceIn % 1e18;
        params.platformFee = flatFee % 1e15;
        params.nullThreshold = nullThreshold % 300;
        contributorsBps %= 10_001;
        params.splitBps = [10_000 - contributorsBps, 0, 0, contributorsBps];
        vm.prank(OWNER);
        models.update(model, params);
    }

    function pots(uint16 spansBps, uint16 contextBps) external {
        (,, ModelRegistry.Params memory params) = models.current(model);
        (spansBps, contextBps) = (spansBps % 2_501, contextBps % 2_501);
        params.potsBps = [10_000 - spansBps - contextBps, spansBps, contextBps];
        vm.prank(OWNER);
        models.update(model, params);
    }

    /// @dev Lists of up to three contributors, empty where the model has no such pot.
    function show(uint256 spans, uint256 context, uint64 weight) private {
        (,, ModelRegistry.Params memory params) = models.current(model);
        evidence.spans = params.potsBps[1] == 0 ? bytes("") : listOf(1001, spans % 4, weight, weight << 3);
        evidence.context = params.potsBps[2] == 0 ? bytes("") : listOf(1002, context % 3, ~weight, weight);
    }

    function answer(uint256 who, uint16 tokensIn, int8 code, uint256 spans, uint256 context, uint64 weight) external {
        show(spans, context, weight);
        query = flat(code == -128 ? int8(1) : code);
        Receipt memory receipt = receiptFor(tokensIn, 0);
        receipt.payer = pick(who);
        if (receipt.feeWei > settlement.prepaid(receipt.payer)) return;
        settle(receipt);
        ++settlements;
    }
}

/// Goal: no order of calls makes or loses a wei.
/// Method: random calls by a handler; after each, all that is owed equals what the contract holds, and all OPEN there
/// is stays what it was.
contract ConservationTest is SettlementBase {
    Handler private handler;
    address[] private accounts;
    uint256 private total;

    function setUp() public {
        build(threeContributors());
        accounts = [PAYER, OWNER, PLATFORM, STAKERS, TREASURY, STRANGER, address(1001), address(1002), address(1003)];
        for (uint256 i = 0; i < accounts.length; ++i) {
            vm.deal(accounts[i], 50 ether);
        }
        handler = new Handler(model, accounts);
        total = everything();
    }

    /// @dev forge calls only this contract at random.
    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function everything() private view returns (uint256 sum) {
        sum = INFERENCE_SETTLEMENT.balance + OPEN.balance + OPEN_TRANSFER.balance;
        for (uint256 i = 0; i < accounts.length; ++i) {
            sum += accounts[i].balance;
        }
    }

    function invariant_conservation() external view {
        uint256 owed = 0;
        for (uint256 i = 0; i < accounts.length; ++i) {
            owed += settlement.prepaid(accounts[i]) + settlement.credit(accounts[i]);
        }
        equal(INFERENCE_SETTLEMENT.balance, owed, "owed");
        equal(everything(), total, "total");
    }
}
