// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {INFERENCE_SETTLEMENT, MODEL_REGISTRY, POA_SCORE, POA_SHARES, SKETCH_STORE} from "../src/l2/Addresses.sol";
import {InferenceSettlement} from "../src/l2/InferenceSettlement.sol";
import {ModelRegistry} from "../src/l2/ModelRegistry.sol";
import {NamedRegistry} from "../src/l2/NamedRegistry.sol";
import {IPoaScore, IPoaShares} from "../src/l2/Precompiles.sol";
import {Evidence, Receipt, hashOf} from "../src/l2/Receipt.sol";
import {Chain} from "./support/Chain.sol";

/// @dev An account that refuses payment.
contract Refuser {
    receive() external payable {
        revert("no");
    }
}

/// @dev An account that claims again while it is paid.
contract Reenterer {
    bool public failed;

    receive() external payable {
        try InferenceSettlement(INFERENCE_SETTLEMENT).claimFor(address(this)) {}
        catch {
            failed = true;
        }
        try InferenceSettlement(INFERENCE_SETTLEMENT).withdraw(1) {} catch {}
    }
}

abstract contract SettlementBase is Chain {
    bytes32 internal model;
    bytes internal query;
    Evidence internal evidence;
    uint256 internal requests;

    /// @dev One datanet, a model over `chunk`, and a payer with 10 OPEN prepaid.
    function build(bytes memory chunk) internal {
        genesis();
        model = modelOver(chunk);
        query = flat(1);
        vm.deal(PAYER, 100 ether);
        vm.prank(PAYER);
        settlement.deposit{value: 10 ether}();
    }

    /// @dev Contributors 1 and 2 get weights 256 and 512, contributor 3 a negative net.
    function threeContributors() internal pure returns (bytes memory) {
        bytes[] memory entries = new bytes[](4);
        entries[0] = entry(address(1001), 1, 1, packed(1));
        entries[1] = entry(address(1002), 2, 3, packed(1));
        entries[2] = entry(address(1002), 3, 1, packed(-1));
        entries[3] = entry(address(1003), 4, 1, packed(-1));
        return join(entries);
    }

    /// @dev A correct receipt for a new request.
    function receiptFor(uint32 tokensIn, uint32 tokensOut) internal returns (Receipt memory receipt) {
        (,, ModelRegistry.Params memory params) = models.current(model);
        receipt.chainId = uint64(block.chainid);
        receipt.settlement = INFERENCE_SETTLEMENT;
        receipt.payer = PAYER;
        receipt.requestId = keccak256(abi.encode("request", requests++));
        receipt.modelId = model;
        receipt.baseHash = params.baseHash;
        receipt.adapterHash = params.adapterHash;
        receipt.manifestHash = params.manifestHash;
        receipt.sketchRoot = params.sketchRoot;
        receipt.promptHash = keccak256("prompt");
        receipt.responseHash = keccak256("response");
        receipt.queryHash = keccak256(query);
        receipt.evidenceHash = hashOf(evidence);
        receipt.tokensIn = tokensIn;
        receipt.tokensOut = tokensOut;
        receipt.feeWei = uint128(settlement.quote(model, tokensIn, tokensOut));
        receipt.answeredAt = uint64(block.timestamp);
    }

    /// @dev What platform, owner, stakers, treasury and the three contributors have earned.
    function everyCredit() internal view returns (uint256) {
        return settlement.credit(PLATFORM) + settlement.credit(OWNER) + settlement.credit(STAKERS)
            + settlement.credit(TREASURY) + settlement.credit(address(1001)) + settlement.credit(address(1002))
            + settlement.credit(address(1003));
    }

    function settle(Receipt memory receipt) internal returns (bytes32) {
        vm.prank(OPERATOR);
        return settlement.settle(receipt, query, evidence);
    }
}

/// Goal: a fee is charged once, at the model's price, and its parts go where the rules say, to the wei.
contract InferenceSettlementTest is SettlementBase {
    function setUp() public {
        build(threeContributors());
    }

    function test_rolesAreInTheSlotsThatGenesisWrites() public view {
        equal(settlement.platform(), PLATFORM, "platform");
        equal(settlement.operator(), OPERATOR, "operator");
        equal(settlement.stakersPool(), STAKERS, "stakers");
    }

    function test_settle() public {
        // 123 * 1e18 / 1000 + 45 * 2e18 / 1000 + 7
        Receipt memory receipt = receiptFor(123, 45);
        equal(receipt.feeWei, 0.213 ether + 7, "fee");
        bytes32 id = keccak256(abi.encode(receipt));

        // 10, 20, 20, 50 % of the fee: the floors lack one wei of the seven, and the largest remainder is model's .4
        // (20 % of 7 = 1.4), stakers' .4, platform's .7, contributors' .5. Platform's is largest, contributors' next.
        uint256 unit = 0.0213 ether;
        vm.expectEmit(true, true, true, true, INFERENCE_SETTLEMENT);
        emit InferenceSettlement.Settled(
            id, model, PAYER, receipt.feeWei, unit + 1, 2 * unit + 1, 2 * unit + 1, 5 * unit + 4, 0, 0
        );
        address[] memory contributors = new address[](2);
        (contributors[0], contributors[1]) = (address(1001), address(1002));
        uint64[] memory weights = new uint64[](2);
        (weights[0], weights[1]) = (256, 512);
        uint256[] memory amounts = new uint256[](2);
        (amounts[0], amounts[1]) = ((5 * unit + 4) / 3, (5 * unit + 4) * 2 / 3);
        // 0.1065e18 + 4 divided by three leaves 1: a third (remainder 1/3) and two thirds (remainder 2/3), which gets it.
        amounts[1] += 1;
        vm.expectEmit(true, true, true, true, INFERENCE_SETTLEMENT);
        emit InferenceSettlement.Credited(id, 0, contributors, weights, amounts);
        equal(settle(receipt), id, "id");

        equal(settlement.prepaid(PAYER), 10 ether - receipt.feeWei, "prepaid");
        equal(settlement.credit(PLATFORM), unit + 1, "platform");
        equal(settlement.credit(OWNER), 2 * unit + 1, "model owner");
        equal(settlement.credit(STAKERS), 2 * unit + 1, "stakers");
        equal(settlement.credit(address(1001)), amounts[0], "first contributor");
        equal(settlement.credit(address(1002)), amounts[1], "second contributor");
        equal(settlement.credit(address(1003)), 0, "third contributor");
        check(settlement.settled(id), "settled");
        equal(settlement.settledAt(id), 7, "block");
        equal(settlement.receiptOf(receipt.requestId), id, "request");
    }

    function test_nobodysDataGoesToTheTreasury() public {
        query = flat(-1);
        // Contributor 3's net is now positive; above a threshold of 256 it is not.
        (,, ModelRegistry.Params memory params) = models.current(model);
        params.nullThreshold = 256;
        vm.prank(OWNER);
        models.update(model, params);
        Receipt memory receipt = receiptFor(1000, 0);
        bytes32 id = keccak256(abi.encode(receipt));
        uint256 pot = receipt.feeWei - receipt.feeWei / 2;
        vm.expectEmit(true, true, false, true, INFERENCE_SETTLEMENT);
        emit InferenceSettlement.TreasuryCredited(id, TREASURY, pot);
        vm.expectEmit(true, true, false, true, INFERENCE_SETTLEMENT);
        emit InferenceSettlement.Credited(id, 0, new address[](0), new uint64[](0), new uint256[](0));
        settle(receipt);
        equal(settlement.credit(TREASURY), pot, "treasury");
    }

    function test_freeModelSettlesToo() public {
        (,, ModelRegistry.Params memory params) = models.current(model);
        (params.priceInPerKTokens, params.priceOutPerKTokens, params.platformFee) = (0, 0, 0);
        vm.prank(OWNER);
        models.update(model, params);
        settle(receiptFor(10, 10));
        equal(settlement.prepaid(PAYER), 10 ether, "prepaid");
    }

    // --- refusals --------------------------------------------------------------------------------

    function refused(Receipt memory receipt, bytes memory reason) private {
        uint256 before = settlement.prepaid(PAYER);
        vm.expectRevert(reason);
        vm.prank(OPERATOR);
        settlement.settle(receipt, query, evidence);
        equal(settlement.prepaid(PAYER), before, "nothing charged");
        check(!settlement.settled(keccak256(abi.encode(receipt))), "not settled");
    }

    function test_onlyTheOperatorSettles() public {
        Receipt memory receipt = receiptFor(1, 1);
        address[3] memory others = [PAYER, PLATFORM, OWNER];
        for (uint256 i = 0; i < others.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(InferenceSettlement.NotOperator.selector, others[i]));
            vm.prank(others[i]);
            settlement.settle(receipt, query, evidence);
        }
    }

    function test_refusesAnotherChainOrContract() public {
        Receipt memory receipt = receiptFor(1, 1);
        receipt.chainId += 1;
        refused(
            receipt,
            abi.encodeWithSelector(InferenceSettlement.WrongSettlement.selector, receipt.chainId, receipt.settlement)
        );
        receipt = receiptFor(1, 1);
        receipt.settlement = STRANGER;
        refused(
            receipt, abi.encodeWithSelector(InferenceSettlement.WrongSettlement.selector, receipt.chainId, STRANGER)
        );
    }

    function test_refusesTheSameRequestTwice() public {
        Receipt memory receipt = receiptFor(1, 1);
        bytes32 id = settle(receipt);
        bytes memory reason = abi.encodeWithSelector(InferenceSettlement.AlreadySettled.selector, receipt.requestId, id);
        vm.expectRevert(reason);
        settle(receipt);
        // Another answer to the same request.
        receipt.responseHash = keccak256("another response");
        refused(receipt, reason);
    }

    function test_refusesWhatTheModelIsNot() public {
        bytes memory reason = abi.encodeWithSelector(InferenceSettlement.WrongModel.selector, model, 1);
        Receipt memory receipt = receiptFor(1, 1);
        receipt.baseHash = keccak256("other");
        refused(receipt, reason);
        receipt = receiptFor(1, 1);
        receipt.adapterHash = keccak256("other");
        refused(receipt, reason);
        receipt = receiptFor(1, 1);
        receipt.manifestHash = keccak256("other");
        refused(receipt, reason);
        receipt = receiptFor(1, 1);
        receipt.sketchRoot = keccak256("other");
        refused(receipt, reason);
        receipt = receiptFor(1, 1);
        receipt.modelId = keccak256("no such model");
        refused(receipt, abi.encodeWithSelector(NamedRegistry.UnknownId.selector, receipt.modelId));

        // The version before the newest.
        receipt = receiptFor(1, 1);
        (,, ModelRegistry.Params memory params) = models.current(model);
        params.adapterHash = keccak256("second adapter");
        vm.prank(OWNER);
        models.update(model, params);
        refused(receipt, abi.encodeWithSelector(InferenceSettlement.WrongModel.selector, model, 2));
    }

    function test_refusesAnotherFee() public {
        Receipt memory receipt = receiptFor(3, 5);
        uint256 fee = receipt.feeWei;
        for (uint256 i = 0; i < 2; ++i) {
            receipt.feeWei = uint128(i == 0 ? fee - 1 : fee + 1);
            refused(receipt, abi.encodeWithSelector(InferenceSettlement.WrongFee.selector, fee, receipt.feeWei));
        }
        receipt.feeWei = uint128(fee);
        receipt.tokensOut += 1;
        refused(
            receipt,
            abi.encodeWithSelector(InferenceSettlement.WrongFee.selector, settlement.quote(model, 3, 6), receipt.feeWei)
        );
    }

    function test_refusesAnotherQuery() public {
        Receipt memory receipt = receiptFor(1, 1);
        bytes32 committed = receipt.queryHash;
        query = flat(2);
        refused(receipt, abi.encodeWithSelector(InferenceSettlement.WrongQuery.selector, committed, keccak256(query)));
        // Committed to, but no query sketch: POA_SCORE says so.
        query = hex"0102";
        receipt = receiptFor(1, 1);
        refused(receipt, bytes("query: 256 codes"));
        query = flat(-128);
        receipt = receiptFor(1, 1);
        refused(receipt, bytes("code: -128"));
    }

    function test_refusesAnEmptyBalance() public {
        Receipt memory receipt = receiptFor(10_000, 1);
        refused(
            receipt,
            abi.encodeWithSelector(InferenceSettlement.InsufficientPrepaid.selector, PAYER, 10 ether, receipt.feeWei)
        );
        receipt = receiptFor(1, 1);
        receipt.payer = STRANGER;
        refused(
            receipt,
            abi.encodeWithSelector(InferenceSettlement.InsufficientPrepaid.selector, STRANGER, 0, receipt.feeWei)
        );
    }

    function test_refusesSharesThatDoNotAddUp() public {
        Receipt memory receipt = receiptFor(1000, 0);
        uint64[] memory bps = new uint64[](4);
        (bps[0], bps[1], bps[2], bps[3]) = (1000, 2000, 2000, 5000);
        uint256[] memory parts = new uint256[](4);
        parts[0] = receipt.feeWei + 1;
        vm.mockCall(POA_SHARES, abi.encodeCall(IPoaShares.shares, (receipt.feeWei, bps)), abi.encode(parts));
        refused(
            receipt,
            abi.encodeWithSelector(InferenceSettlement.SharesBroken.selector, receipt.feeWei, receipt.feeWei + 1)
        );
        vm.mockCall(POA_SHARES, abi.encodeCall(IPoaShares.shares, (receipt.feeWei, bps)), abi.encode(new uint256[](0)));
        refused(receipt, abi.encodeWithSelector(InferenceSettlement.SharesBroken.selector, receipt.feeWei, 0));
    }

    // --- prepaid and credit ----------------------------------------------------------------------

    function test_depositForAndWithdraw() public {
        vm.deal(STRANGER, 5 ether);
        vm.prank(STRANGER);
        settlement.depositFor{value: 5 ether}(PAYER);
        equal(settlement.prepaid(PAYER), 15 ether, "prepaid");
        vm.expectRevert(InferenceSettlement.InvalidAccount.selector);
        settlement.depositFor(address(0));

        vm.expectRevert(abi.encodeWithSelector(InferenceSettlement.InsufficientPrepaid.selector, STRANGER, 0, 1));
        vm.prank(STRANGER);
        settlement.withdraw(1);
        vm.prank(PAYER);
        settlement.withdraw(15 ether);
        equal(PAYER.balance, 105 ether, "taken back");
        equal(settlement.prepaid(PAYER), 0, "prepaid after");
    }

    function test_plainPaymentsAreRefused() public {
        vm.prank(PAYER);
        (bool accepted,) = INFERENCE_SETTLEMENT.call{value: 1}("");
        check(!accepted, "accepted");
    }

    function test_claim() public {
        settle(receiptFor(1000, 1000));
        uint256 credit = settlement.credit(address(1002));
        check(credit > 0, "credit");
        vm.prank(STRANGER);
        equal(settlement.claimFor(address(1002)), credit, "claimed for");
        equal(address(1002).balance, credit, "paid to the account, not to the caller");
        vm.expectRevert(abi.encodeWithSelector(InferenceSettlement.NothingToClaim.selector, address(1002)));
        settlement.claimFor(address(1002));

        credit = settlement.credit(address(1001));
        vm.expectRevert(InferenceSettlement.InvalidAccount.selector);
        vm.prank(address(1001));
        settlement.claim(address(0));
        vm.prank(address(1001));
        equal(settlement.claim(STRANGER), credit, "claimed");
        equal(STRANGER.balance, credit, "paid to");
    }

    function test_refusedPaymentKeepsTheCredit() public {
        address refuser = address(new Refuser());
        vm.prank(PLATFORM);
        settlement.setStakersPool(refuser);
        settle(receiptFor(1000, 0));
        uint256 credit = settlement.credit(refuser);
        vm.expectRevert(abi.encodeWithSelector(InferenceSettlement.PaymentRefused.selector, refuser));
        settlement.claimFor(refuser);
        equal(settlement.credit(refuser), credit, "credit");
        vm.prank(refuser);
        settlement.claim(STRANGER);
        equal(STRANGER.balance, credit, "paid elsewhere");
    }

    function test_reentryGetsNothingMore() public {
        Reenterer reenterer = new Reenterer();
        vm.prank(PLATFORM);
        settlement.setStakersPool(address(reenterer));
        settle(receiptFor(1000, 0));
        vm.deal(STRANGER, 1 ether);
        vm.prank(STRANGER);
        settlement.depositFor{value: 1 ether}(address(reenterer));
        uint256 credit = settlement.credit(address(reenterer));
        settlement.claimFor(address(reenterer));
        check(reenterer.failed(), "the inner claim fails");
        equal(address(reenterer).balance, credit, "paid once");
        equal(settlement.prepaid(address(reenterer)), 1 ether, "no withdrawal inside a claim");
    }

    function test_roles() public {
        bytes memory reason = abi.encodeWithSelector(InferenceSettlement.NotPlatform.selector, STRANGER);
        vm.expectRevert(reason);
        vm.prank(STRANGER);
        settlement.setOperator(STRANGER);
        vm.expectRevert(reason);
        vm.prank(STRANGER);
        settlement.setStakersPool(STRANGER);
        vm.expectRevert(reason);
        vm.prank(STRANGER);
        settlement.offerPlatform(STRANGER);
        vm.expectRevert(InferenceSettlement.InvalidAccount.selector);
        vm.prank(PLATFORM);
        settlement.setOperator(address(0));
        vm.expectRevert(InferenceSettlement.InvalidAccount.selector);
        vm.prank(PLATFORM);
        settlement.setStakersPool(address(0));

        vm.prank(PLATFORM);
        settlement.setOperator(STRANGER);
        equal(settlement.operator(), STRANGER, "operator");

        vm.prank(PLATFORM);
        settlement.offerPlatform(OWNER);
        vm.expectRevert(abi.encodeWithSelector(InferenceSettlement.NotPendingPlatform.selector, STRANGER));
        vm.prank(STRANGER);
        settlement.acceptPlatform();
        vm.prank(OWNER);
        settlement.acceptPlatform();
        equal(settlement.platform(), OWNER, "platform");
        equal(settlement.pendingPlatform(), address(0), "offer used up");
    }

    // --- properties ------------------------------------------------------------------------------

    /// @dev Whatever the price, the split and the answer: parts add up to the fee, and so do balances.
    function testFuzz_partsAddUp(
        uint128 priceIn,
        uint128 priceOut,
        uint128 flatFee,
        uint32 tokensIn,
        uint32 tokensOut,
        uint16[3] memory cuts,
        int8 code
    ) public {
        (,, ModelRegistry.Params memory params) = models.current(model);
        params.priceInPerKTokens = priceIn % 1e20;
        params.priceOutPerKTokens = priceOut % 1e20;
        params.platformFee = flatFee % 1e20;
        uint16 left = 10_000;
        for (uint256 i = 0; i < 3; ++i) {
            params.splitBps[i] = cuts[i] % (left + 1);
            left -= params.splitBps[i];
        }
        params.splitBps[3] = left;
        vm.prank(OWNER);
        models.update(model, params);
        query = flat(code == -128 ? int8(0) : code);

        Receipt memory receipt = receiptFor(tokensIn, tokensOut);
        vm.deal(STRANGER, receipt.feeWei);
        vm.prank(STRANGER);
        settlement.depositFor{value: receipt.feeWei}(PAYER);
        settle(receipt);

        uint256 credited = everyCredit();
        equal(credited, receipt.feeWei, "credited");
        equal(settlement.prepaid(PAYER), 10 ether, "prepaid");
        equal(INFERENCE_SETTLEMENT.balance, 10 ether + credited, "balance");
    }

    /// @dev The highest price and the longest answer there can be.
    function test_largestFeeFits() public {
        (,, ModelRegistry.Params memory params) = models.current(model);
        (params.priceInPerKTokens, params.priceOutPerKTokens, params.platformFee) = (1e27, 1e27, 1e27);
        vm.prank(OWNER);
        models.update(model, params);
        check(settlement.quote(model, type(uint32).max, type(uint32).max) < 2 ** 128, "fee");
    }
}

/// Goal: what settling costs, without what the precompiles themselves charge (specs/poa.md gives that) and without the
/// transaction's own 21,000 and calldata. Their answers are mocked, so that the twins' gas is not in the figure.
abstract contract SettlementGas is SettlementBase {
    event GasUsed(string what, uint256 gas);

    function measure(string memory what) internal returns (uint256 gasUsed) {
        Receipt memory receipt = receiptFor(1000, 0);
        mockPrecompiles(receipt);
        bytes memory sketch = query;
        Evidence memory shown = evidence;
        address[4] memory touched = [INFERENCE_SETTLEMENT, MODEL_REGISTRY, SKETCH_STORE, OPERATOR];
        for (uint256 i = 0; i < touched.length; ++i) {
            vm.cool(touched[i]);
        }
        vm.prank(OPERATOR);
        gasUsed = gasleft();
        settlement.settle(receipt, sketch, shown);
        gasUsed -= gasleft();
        vm.clearMockedCalls();
        emit GasUsed(what, gasUsed);
    }

    function mockPrecompiles(Receipt memory receipt) private {
        uint256 fee = receipt.feeWei;
        (address[] memory chunks,) = sketches.indexOf(receipt.sketchRoot);
        (address[] memory contributors, uint64[] memory weights) = IPoaScore(POA_SCORE).score(chunks, 0, query);
        equal(contributors.length, 100, "contributors");
        uint64[] memory bps = new uint64[](4);
        (bps[0], bps[1], bps[2], bps[3]) = (1000, 2000, 2000, 5000);
        uint256[] memory parts = IPoaShares(POA_SHARES).shares(fee, bps);
        uint64[] memory pots = new uint64[](3);
        pots[0] = 10_000;
        vm.mockCall(
            POA_SHARES,
            abi.encodeCall(IPoaShares.shares, (parts[3], pots)),
            abi.encode(IPoaShares(POA_SHARES).shares(parts[3], pots))
        );
        uint256[] memory amounts = IPoaShares(POA_SHARES).shares(parts[3], weights);
        vm.mockCall(POA_SCORE, abi.encodeCall(IPoaScore.score, (chunks, 0, query)), abi.encode(contributors, weights));
        vm.mockCall(POA_SHARES, abi.encodeCall(IPoaShares.shares, (fee, bps)), abi.encode(parts));
        vm.mockCall(POA_SHARES, abi.encodeCall(IPoaShares.shares, (parts[3], weights)), abi.encode(amounts));
    }
}

contract FirstSettlementGasTest is SettlementGas {
    function setUp() public {
        build(chunkOf(5000, 100, packed(1)));
    }

    function test_gas() public {
        check(measure("settle, 100 contributors, each paid for the first time") < 2_700_000, "gas");
    }
}

/// @dev Credit slots are in use since `setUp`: what an answer costs from the second one on.
contract LaterSettlementGasTest is SettlementGas {
    function setUp() public {
        build(chunkOf(5000, 100, packed(1)));
        settle(receiptFor(1000, 0));
    }

    function test_gas() public {
        check(measure("settle, 100 contributors, each paid before") < 900_000, "gas");
    }
}
