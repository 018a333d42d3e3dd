// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {INFERENCE_SETTLEMENT} from "../src/l2/Addresses.sol";
import {InferenceSettlement} from "../src/l2/InferenceSettlement.sol";
import {ModelRegistry} from "../src/l2/ModelRegistry.sol";
import {Receipt, hashOf} from "../src/l2/Receipt.sol";
import {SettlementBase} from "./InferenceSettlement.t.sol";

/// Goal: the contributors' part goes to the pots that the model has, by the evidence that the receipt commits to, to the
/// wei; what is not earned of a pot falls to training.
contract PotsTest is SettlementBase {
    uint256 private constant FEE = 1 ether + 7;
    uint256 private constant PART = FEE / 2 + 1;

    function setUp() public {
        build(threeContributors());
        setPots(6_000, 2_500, 1_500);
    }

    function setPots(uint16 training, uint16 spans, uint16 context) private {
        (,, ModelRegistry.Params memory params) = models.current(model);
        params.potsBps = [training, spans, context];
        vm.prank(OWNER);
        models.update(model, params);
    }

    function pair(address first, uint64 weight0, address second, uint64 weight1) private pure returns (bytes memory) {
        return abi.encodePacked(weight0 + weight1, first, weight0, second, weight1);
    }

    function one(address who, uint64 weight, uint64 total) private pure returns (bytes memory) {
        return abi.encodePacked(total, who, weight);
    }

    function settleFor(uint256 expected) private returns (Receipt memory receipt) {
        receipt = receiptFor(1000, 0);
        equal(receipt.feeWei, FEE, "fee");
        settle(receipt);
        uint256 others = settlement.credit(PLATFORM) + settlement.credit(OWNER) + settlement.credit(STAKERS);
        equal(everyCredit(), FEE, "all");
        equal(FEE - others, expected, "contributors and treasury");
    }

    function test_eachPotIsSharedByItsOwnWeights() public {
        evidence.spans = pair(address(1001), 1, address(1003), 3);
        evidence.context = one(address(1003), 9, 9);
        evidence.object = keccak256("object");
        // 0.5 OPEN and 4 wei: 60 % leave .4, 25 % leave 0, 15 % leave .6 of a wei.
        uint256[3] memory pots = [uint256(0.3 ether + 2), 0.125 ether + 1, 0.075 ether + 1];
        equal(pots[0] + pots[1] + pots[2], PART, "pots");
        Receipt memory receipt = receiptFor(1000, 0);
        bytes32 id = keccak256(abi.encode(receipt));
        uint256 unit = 0.1 ether;
        vm.expectEmit(true, true, true, true, INFERENCE_SETTLEMENT);
        emit InferenceSettlement.Settled(
            id, model, PAYER, FEE, unit + 1, 2 * unit + 1, 2 * unit + 1, pots[0], pots[1], pots[2]
        );
        address[] memory contributors = new address[](2);
        (contributors[0], contributors[1]) = (address(1001), address(1003));
        uint64[] memory weights = new uint64[](2);
        (weights[0], weights[1]) = (1, 3);
        uint256[] memory amounts = new uint256[](2);
        // The quarter of the unit left over goes to the larger remainder, 3/4.
        (amounts[0], amounts[1]) = (pots[1] / 4, pots[1] - pots[1] / 4);
        vm.expectEmit(true, true, false, true, INFERENCE_SETTLEMENT);
        emit InferenceSettlement.Credited(id, 1, contributors, weights, amounts);
        contributors = new address[](1);
        contributors[0] = address(1003);
        weights = new uint64[](1);
        weights[0] = 9;
        uint256 ofSpans = amounts[1];
        amounts = new uint256[](1);
        amounts[0] = pots[2];
        vm.expectEmit(true, true, false, true, INFERENCE_SETTLEMENT);
        emit InferenceSettlement.Credited(id, 2, contributors, weights, amounts);
        settle(receipt);
        equal(settlement.credit(address(1003)), ofSpans + pots[2], "spans and context of one account");
        uint256 trained = settlement.credit(address(1001)) + settlement.credit(address(1002)) - (pots[1] - ofSpans);
        equal(trained, pots[0], "training");
    }

    function test_aPotWithoutEvidenceFallsToTraining() public {
        evidence.context = one(address(1003), 1, 1);
        settleFor(PART);
        // 15 % of 0.5 OPEN and 4 wei; 85 % leave .4, 15 % leave .6.
        equal(settlement.credit(address(1003)), 0.075 ether + 1, "context");
    }

    function test_withoutAnyEvidenceAllIsTraining() public {
        settleFor(PART);
        equal(settlement.credit(address(1003)), 0, "nobody shown");
        equal(settlement.credit(address(1001)) + settlement.credit(address(1002)), PART, "training");
    }

    function test_trainingThatMovedNothingPaysTheTreasuryItsPotAlone() public {
        query = flat(0);
        evidence.spans = one(address(1003), 1, 1);
        settleFor(PART);
        equal(settlement.credit(address(1003)), 0.125 ether + 1, "spans");
        equal(settlement.credit(TREASURY), 0.375 ether + 3, "training, and context without evidence");
    }

    function test_whatIsNotEarnedFallsToTraining() public {
        query = flat(0);
        // One unit of a hundred thousand, and all but a third.
        evidence.spans = one(address(1003), 1, 100_000);
        evidence.context = one(address(1002), 200, 300);
        settleFor(PART);
        uint256[2] memory paid = [(0.125 ether + 1) / uint256(100_000), (0.075 ether + 1) * uint256(2) / 3];
        equal(settlement.credit(address(1003)), paid[0], "spans");
        equal(settlement.credit(address(1002)), paid[1], "context");
        equal(settlement.credit(TREASURY), PART - paid[0] - paid[1], "training");
    }

    /// @dev A part of a wei is nobody's: training has it, and the pot pays nothing.
    function test_lessThanAWeiIsNotPaid() public {
        (,, ModelRegistry.Params memory params) = models.current(model);
        (params.priceInPerKTokens, params.priceOutPerKTokens, params.platformFee) = (0, 0, 10);
        vm.prank(OWNER);
        models.update(model, params);
        query = flat(0);
        evidence.spans = one(address(1003), 1, type(uint64).max);
        settle(receiptFor(10, 10));
        equal(settlement.credit(address(1003)), 0, "spans");
        equal(settlement.credit(TREASURY), 5, "training");
    }

    /// @dev scripts/vectors.mjs; ol-poa is held to them too. Half of the fee is the part, and a query that moves nothing
    /// leaves the pot for training to the treasury.
    function test_goldenPots() public {
        string memory json = vm.readFile("test/vectors/evidence.json");
        query = flat(0);
        uint256 i = 0;
        for (; vm.keyExistsJson(json, string.concat(".pots[", vm.toString(i), "]")); ++i) {
            goldenPots(json, string.concat(".pots[", vm.toString(i), "]."));
        }
        equal(i, 12, "cases read");
    }

    function goldenPots(string memory json, string memory path) private {
        uint256 part = vm.parseJsonUint(json, string.concat(path, "part"));
        // No price is above all OPEN there is.
        if (2 * part > 1e27) return;
        setGolden(json, path, part);
        string memory which = vm.toString(vm.parseJsonUint(json, string.concat(path, "case")));
        which = string.concat(".cases[", which, "].");
        evidence.spans = vm.parseJsonBytes(json, string.concat(which, "spans"));
        evidence.context = vm.parseJsonBytes(json, string.concat(which, "context"));
        uint256[] memory amounts = vm.parseJsonUintArray(json, string.concat(path, "amounts"));
        uint256 treasury = settlement.credit(TREASURY);
        uint256 shown = creditOf(evidence.spans);
        uint256 read = creditOf(evidence.context);
        settle(receiptFor(0, 0));
        equal(settlement.credit(TREASURY) - treasury, amounts[0], "training");
        bytes32 name = keccak256(bytes(which));
        // There somebody is in both lists.
        if (name == keccak256(".cases[3].") || name == keccak256(".cases[4].")) return;
        equal(creditOf(evidence.spans) - shown, amounts[1], "spans");
        equal(creditOf(evidence.context) - read, amounts[2], "context");
    }

    function setGolden(string memory json, string memory path, uint256 part) private {
        (,, ModelRegistry.Params memory params) = models.current(model);
        (params.priceInPerKTokens, params.priceOutPerKTokens, params.platformFee) = (0, 0, uint128(2 * part));
        params.splitBps = [uint16(0), 0, 5_000, 5_000];
        uint256[] memory bps = vm.parseJsonUintArray(json, string.concat(path, "potsBps"));
        params.potsBps = [uint16(bps[0]), uint16(bps[1]), uint16(bps[2])];
        vm.prank(OWNER);
        models.update(model, params);
        vm.deal(STRANGER, 2 * part);
        vm.prank(STRANGER);
        settlement.depositFor{value: 2 * part}(PAYER);
    }

    function creditOf(bytes memory list) private view returns (uint256 sum) {
        for (uint256 start = 8; start < list.length; start += 28) {
            address who;
            assembly ("memory-safe") {
                who := shr(96, mload(add(add(list, 0x20), start)))
            }
            sum += settlement.credit(who);
        }
    }

    function test_aFreeModelPaysNobody() public {
        (,, ModelRegistry.Params memory params) = models.current(model);
        (params.priceInPerKTokens, params.priceOutPerKTokens, params.platformFee) = (0, 0, 0);
        vm.prank(OWNER);
        models.update(model, params);
        evidence.spans = listOf(1001, 3, 9);
        settle(receiptFor(10, 10));
        equal(settlement.credit(address(1001)), 0, "credit");
    }

    // --- refusals --------------------------------------------------------------------------------

    function refusedList(bytes memory list, uint8 pot) private {
        (evidence.spans, evidence.context) = pot == 1 ? (list, bytes("")) : (bytes(""), list);
        Receipt memory receipt = receiptFor(1000, 0);
        vm.expectRevert(abi.encodeWithSelector(InferenceSettlement.InvalidEvidence.selector, pot));
        settle(receipt);
        equal(settlement.prepaid(PAYER), 10 ether, "nothing charged");
    }

    function test_refusesListsThatAreNone() public {
        for (uint8 pot = 1; pot <= 2; ++pot) {
            refusedList(pair(address(1003), 1, address(1001), 1), pot);
            refusedList(pair(address(1001), 1, address(1001), 1), pot);
            refusedList(pair(address(1001), 1, address(1003), 0), pot);
            refusedList(pair(address(0), 1, address(1003), 1), pot);
            refusedList(abi.encodePacked(listOf(1001, 2, 9), uint8(0)), pot);
            refusedList(hex"00", pot);
            refusedList(abi.encodePacked(uint64(0)), pot);
            refusedList(abi.encodePacked(uint64(1)), pot);
            // More than all.
            refusedList(one(address(1003), 2, 1), pot);
            refusedList(one(address(1003), 1, 0), pot);
            refusedList(abi.encodePacked(uint64(7), address(1001), uint64(4), address(1003), uint64(4)), pot);
            refusedList(listOf(1001, 257, 9), pot);
        }
        evidence.context = "";
        evidence.spans = listOf(1001, 256, 9);
        settle(receiptFor(1000, 0));
    }

    function test_refusesAWeightThatIsTooLarge() public {
        evidence.spans = one(address(1001), uint64(1) << 63, uint64(1) << 63);
        Receipt memory receipt = receiptFor(1000, 0);
        vm.expectRevert(bytes("shares: weight"));
        settle(receipt);
    }

    function test_refusesEvidenceForAPotThatTheModelHasNot() public {
        setPots(7_500, 2_500, 0);
        refusedList(listOf(1001, 1, 9), 2);
        setPots(10_000, 0, 0);
        refusedList(listOf(1001, 1, 9), 1);
    }

    function test_refusesOtherEvidenceThanTheReceiptCommitsTo() public {
        evidence.spans = listOf(1001, 2, 9);
        evidence.object = keccak256("object");
        Receipt memory receipt = receiptFor(1000, 0);
        for (uint256 change = 0; change < 3; ++change) {
            evidence.spans = listOf(change == 0 ? 1002 : 1001, 2, 9);
            evidence.context = change == 1 ? listOf(1001, 1, 9) : bytes("");
            evidence.object = keccak256(change == 2 ? bytes("other") : bytes("object"));
            vm.expectRevert(
                abi.encodeWithSelector(
                    InferenceSettlement.WrongEvidence.selector, receipt.evidenceHash, hashOf(evidence)
                )
            );
            settle(receipt);
        }
        // The same bytes in the other list are other evidence.
        (evidence.spans, evidence.context) = ("", listOf(1001, 2, 9));
        evidence.object = keccak256("object");
        check(hashOf(evidence) != receipt.evidenceHash, "lists are told apart");
    }

    // --- bounds ----------------------------------------------------------------------------------

    function refusedPots(uint16[3] memory potsBps) private {
        (,, ModelRegistry.Params memory params) = models.current(model);
        params.potsBps = potsBps;
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.PotsOutOfBounds.selector, potsBps, models.potBounds()));
        vm.prank(OWNER);
        models.update(model, params);
    }

    function test_potsKeepWithinBounds() public {
        refusedPots([uint16(4_999), 2_501, 2_500]);
        refusedPots([uint16(5_999), 4_001, 0]);
        refusedPots([uint16(5_999), 0, 4_001]);
        setPots(5_000, 4_000, 1_000);
        setPots(5_000, 1_000, 4_000);
        (,, ModelRegistry.Params memory params) = models.current(model);
        params.potsBps = [uint16(9_999), 0, 0];
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidPots.selector, 9_999));
        vm.prank(OWNER);
        models.update(model, params);
        params.potsBps = [uint16(65_535), 65_535, 65_535];
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidPots.selector, 196_605));
        vm.prank(OWNER);
        models.update(model, params);
    }

    function test_thePlatformSetsBoundsForNewVersions() public {
        ModelRegistry.PotBounds memory bounds = ModelRegistry.PotBounds(8_000, 2_000, 0);
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.NotPlatform.selector, OWNER));
        vm.prank(OWNER);
        models.setPotBounds(bounds);
        vm.prank(PLATFORM);
        models.setPotBounds(bounds);
        equal(keccak256(abi.encode(models.potBounds())), keccak256(abi.encode(bounds)), "bounds");
        refusedPots([uint16(7_999), 2_000, 1]);
        setPots(8_000, 2_000, 0);
        // What was registered before settles as before.
        evidence.spans = listOf(1003, 1, 9);
        settleFor(PART);
        equal(settlement.credit(address(1003)), 0.1 ether + 1, "spans");
    }

    function test_boundsKeepWithinTheHardCaps() public {
        ModelRegistry.PotBounds[4] memory refused = [
            ModelRegistry.PotBounds(2_499, 0, 0),
            ModelRegistry.PotBounds(10_001, 0, 0),
            ModelRegistry.PotBounds(2_500, 5_001, 0),
            ModelRegistry.PotBounds(2_500, 0, 5_001)
        ];
        for (uint256 i = 0; i < refused.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidPotBounds.selector, refused[i]));
            vm.prank(PLATFORM);
            models.setPotBounds(refused[i]);
        }
        vm.prank(PLATFORM);
        models.setPotBounds(ModelRegistry.PotBounds(2_500, 5_000, 5_000));
        setPots(2_500, 5_000, 2_500);
    }

    // --- properties ------------------------------------------------------------------------------

    /// @dev Whatever pots, evidence and fee: all of it is credited, and the contract holds what it owes.
    function testFuzz_potsAddUp(uint16[2] memory cuts, uint256[2] memory sizes, uint64 weight, uint128 flat, int8 code)
        public
    {
        (,, ModelRegistry.Params memory params) = models.current(model);
        (uint16 spans, uint16 context) = (cuts[0] % 2_501, cuts[1] % 2_501);
        params.potsBps = [10_000 - spans - context, spans, context];
        params.platformFee = flat % 1e20;
        vm.prank(OWNER);
        models.update(model, params);
        query = this.flatOf(code);
        evidence.spans = spans == 0 ? bytes("") : listOf(1001, sizes[0] % 4, weight, weight << 7);
        evidence.context = context == 0 ? bytes("") : listOf(1001, sizes[1] % 4, ~weight, weight >> 9);
        Receipt memory receipt = receiptFor(1000, 0);
        vm.deal(STRANGER, receipt.feeWei);
        vm.prank(STRANGER);
        settlement.depositFor{value: receipt.feeWei}(PAYER);
        settle(receipt);
        uint256 credited = everyCredit();
        equal(credited, receipt.feeWei, "credited");
        equal(INFERENCE_SETTLEMENT.balance, 10 ether + credited, "balance");
    }

    function flatOf(int8 code) external pure returns (bytes memory) {
        return flat(code == -128 ? int8(0) : code);
    }
}
