// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ATTRIBUTION_COURT, INFERENCE_SETTLEMENT, POA_VERIFY} from "../src/l2/Addresses.sol";
import {AttributionCourt} from "../src/l2/AttributionCourt.sol";
import {CommittedIndexes} from "../src/l2/CommittedIndexes.sol";
import {InferenceSettlement} from "../src/l2/InferenceSettlement.sol";
import {ModelRegistry} from "../src/l2/ModelRegistry.sol";
import {IPoaVerify, Terms} from "../src/l2/Precompiles.sol";
import {Evidence, Receipt, hashOf} from "../src/l2/Receipt.sol";
import {SketchStore} from "../src/l2/SketchStore.sol";
import {Chain} from "./support/Chain.sol";

/// @dev A winner who withdraws again while it is paid.
contract Greedy {
    uint256 public calls;

    function challenge(bytes32 id, bytes calldata step) external payable {
        AttributionCourt(payable(ATTRIBUTION_COURT)).challenge{value: msg.value}(id, step);
    }

    function withdraw() external {
        AttributionCourt(payable(ATTRIBUTION_COURT)).withdraw(address(this));
    }

    receive() external payable {
        ++calls;
        try AttributionCourt(payable(ATTRIBUTION_COURT)).withdraw(address(this)) {
            ++calls;
        } catch {}
    }
}

/// @dev A model over an index of two entries by two contributors, and claims about it. Scores are 256 and 768, so the
/// weights are a quarter and three quarters.
abstract contract CourtBase is Chain {
    address internal constant FIRST = address(1001);
    address internal constant SECOND = address(1002);
    address internal constant CHALLENGER = address(0xc4);
    uint256 internal constant FEE = 1 ether + 7;

    bytes32 internal model;
    bytes internal query;
    bytes internal entry0;
    bytes internal entry1;
    uint256 internal requests;

    /// @dev The trees of a claim, each of two leaves.
    struct Trees {
        int64 score0;
        int64 score1;
        uint128 share0;
        uint128 share1;
    }

    function build() internal {
        genesis();
        query = flat(1);
        entry0 = entry(FIRST, 1, 1, packed(1));
        entry1 = entry(SECOND, 2, 3, packed(1));
        bytes32 leaf0 = keccak256(abi.encodePacked(uint8(0), entry0));
        bytes32 leaf1 = keccak256(abi.encodePacked(uint8(0), entry1));
        bytes32 id = court.commitIndex(
            keccak256(abi.encodePacked(entry0, entry1)),
            keccak256(abi.encodePacked(uint8(1), leaf0, leaf1)),
            2,
            keccak256(abi.encodePacked(uint8(1), range(FIRST, 1), range(SECOND, 2))),
            2
        );
        vm.prank(OWNER);
        datanets.create("legal", TREASURY);
        vm.prank(OWNER);
        model = models.register("legal-model", paramsFor(id));
        vm.deal(PAYER, 100 ether);
        vm.prank(PAYER);
        settlement.deposit{value: 50 ether}();
        vm.deal(OPERATOR, 100 ether);
        vm.prank(OPERATOR);
        court.addBond{value: 20 ether}();
        vm.deal(CHALLENGER, 10 ether);
    }

    function range(address contributor, uint32 end) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0), contributor, end));
    }

    /// @dev Optimistic models pay by training alone.
    Evidence internal none;

    function receiptFor() internal returns (Receipt memory receipt) {
        (,, ModelRegistry.Params memory params) = models.current(model);
        receipt.chainId = uint64(CHAIN_ID);
        receipt.settlement = INFERENCE_SETTLEMENT;
        receipt.payer = PAYER;
        receipt.requestId = keccak256(abi.encode("request", ++requests));
        receipt.modelId = model;
        receipt.baseHash = params.baseHash;
        receipt.adapterHash = params.adapterHash;
        receipt.manifestHash = params.manifestHash;
        receipt.sketchRoot = params.sketchRoot;
        receipt.queryHash = keccak256(query);
        receipt.evidenceHash = hashOf(none);
        receipt.tokensIn = 1000;
        receipt.feeWei = uint128(settlement.quote(model, 1000, 0));
    }

    /// @dev Half of the fee; the unit that is left over goes to the contributors.
    function pot() internal pure returns (uint128) {
        return uint128(FEE / 2 + 1);
    }

    /// @dev What stands: a quarter, three quarters.
    function honest() internal pure returns (Trees memory) {
        uint128 share0 = pot() / 4;
        return Trees({score0: 256, score1: 768, share0: share0, share1: pot() - share0});
    }

    function cutoff(Trees memory) internal pure returns (uint64 remainder, uint32 position) {
        uint256 remainder0 = uint256(pot()) * 256 % 1024;
        uint256 remainder1 = uint256(pot()) * 768 % 1024;
        if (remainder0 == 0) return (0, 0);
        return remainder0 >= remainder1 ? (uint64(remainder0), uint32(0)) : (uint64(remainder1), uint32(1));
    }

    function scoreNode(uint32 position, int64 score) internal pure returns (bytes memory) {
        return abi.encodePacked(keccak256(abi.encodePacked(uint8(0), position, score)), score);
    }

    function netNode(address contributor, uint32 end, int64 net) internal pure returns (bytes memory) {
        uint64 weight = net > 0 ? uint64(net) : 0;
        return abi.encodePacked(keccak256(abi.encodePacked(uint8(0), contributor, end, net)), net, weight);
    }

    function shareNode(address contributor, uint128 share) internal pure returns (bytes memory) {
        return abi.encodePacked(keccak256(abi.encodePacked(uint8(0), contributor, share)), share);
    }

    function above(bytes memory left, bytes memory right) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(1), left, right));
    }

    function posted(Trees memory trees) internal pure returns (AttributionCourt.Posted memory result) {
        result.scoresHash = above(scoreNode(0, trees.score0), scoreNode(1, trees.score1));
        result.netsHash = above(netNode(FIRST, 1, trees.score0), netNode(SECOND, 2, trees.score1));
        result.sharesHash = above(shareNode(FIRST, trees.share0), shareNode(SECOND, trees.share1));
        result.net = trees.score0 + trees.score1;
        result.weight = uint64(result.net);
        (result.cutoffRemainder, result.cutoffPosition) = cutoff(trees);
    }

    function claim(Trees memory trees) internal returns (bytes32 id) {
        Receipt memory receipt = receiptFor();
        vm.prank(OPERATOR);
        return court.claim(receipt, query, posted(trees), 1, keccak256("data"));
    }

    /// @dev About the score of the first entry.
    function scoreStep(Trees memory trees) internal view returns (bytes memory) {
        bytes32 leaf1 = keccak256(abi.encodePacked(uint8(0), entry1));
        return abi.encodePacked(uint8(1), uint32(0), trees.score0, scoreNode(1, trees.score1), entry0, leaf1, query);
    }

    /// @dev About the share of the first contributor.
    function shareStep(Trees memory trees) internal pure returns (bytes memory) {
        bytes memory net = abi.encodePacked(FIRST, uint32(1), trees.score0, uint64(trees.score0));
        bytes memory nets = abi.encodePacked(net, netNode(SECOND, 2, trees.score1));
        return
            abi.encodePacked(uint8(4), uint32(0), shareNode(FIRST, trees.share0), shareNode(SECOND, trees.share1), nets);
    }

    /// @dev The root of the scores, as asked to be revealed; and what answers.
    function scoreRoot(Trees memory trees) internal pure returns (bytes memory root, bytes memory row) {
        bytes memory left = scoreNode(0, trees.score0);
        bytes memory right = scoreNode(1, trees.score1);
        root = abi.encodePacked(above(left, right), trees.score0 + trees.score1);
        row = abi.encodePacked(left, right);
    }

    function challenge(bytes32 id, bytes memory step) internal returns (bool) {
        uint256 bond = court.CHALLENGE_BOND();
        vm.prank(CHALLENGER);
        return court.challenge{value: bond}(id, step);
    }

    function requestReveal(bytes32 id, bytes memory root) internal {
        uint256 bond = court.REVEAL_BOND();
        vm.prank(CHALLENGER);
        court.requestReveal{value: bond}(id, 0, 1, 0, root);
    }

    function afterWindow() internal {
        vm.warp(block.timestamp + court.WINDOW_S());
    }

    function statusOf(bytes32 id) internal view returns (uint256) {
        return uint256(court.claimOf(id).status);
    }
}

/// Goal: an honest claim pays to the wei and survives everything; a lie costs its operator, once.
contract AttributionCourtTest is CourtBase {
    uint256 private constant PENDING = 1;
    uint256 private constant PAID = 2;
    uint256 private constant REFUTED = 3;

    function setUp() public {
        build();
    }

    function test_an_honest_claim_pays_what_it_says() public {
        bytes32 id = claim(honest());
        equal(court.bonds(OPERATOR), 20 ether - court.bondOf(FEE), "bond held");
        equal(ATTRIBUTION_COURT.balance, 20 ether + FEE, "fee held");
        vm.expectPartialRevert(AttributionCourt.WindowOpen.selector);
        court.close(id);
        afterWindow();
        court.close(id);
        equal(court.bonds(OPERATOR), 20 ether, "bond free");

        Trees memory trees = honest();
        bytes memory path = shareNode(SECOND, trees.share1);
        court.collect(id, 0, FIRST, trees.share0, path);
        vm.expectPartialRevert(AttributionCourt.NothingToCollect.selector);
        court.collect(id, 0, FIRST, trees.share0, path);
        vm.expectRevert(bytes("poa verify: the step is not part of the claim"));
        court.collect(id, 1, SECOND, trees.share1 + 1, shareNode(FIRST, trees.share0));
        court.collect(id, 1, SECOND, trees.share1, shareNode(FIRST, trees.share0));
        uint256 sum = court.credit(FIRST) + court.credit(SECOND) + court.credit(PLATFORM) + court.credit(OWNER)
            + court.credit(STAKERS);
        equal(sum, FEE, "parts");
        equal(court.credit(FIRST), trees.share0, "first");

        vm.prank(SECOND);
        court.withdraw(SECOND);
        equal(SECOND.balance, trees.share1, "paid out");
        vm.prank(SECOND);
        vm.expectPartialRevert(AttributionCourt.NothingToWithdraw.selector);
        court.withdraw(SECOND);
        court.withdrawFor(FIRST);
        equal(FIRST.balance, trees.share0, "paid out by a stranger");
        vm.expectPartialRevert(AttributionCourt.NothingToWithdraw.selector);
        court.withdrawFor(FIRST);
        vm.expectPartialRevert(AttributionCourt.WrongStatus.selector);
        court.close(id);
    }

    function test_a_wrong_score_loses_the_bond_once() public {
        Trees memory lie = honest();
        lie.score0 += 1;
        lie.score1 -= 1;
        bytes32 id = claim(lie);
        uint256 prepaid = settlement.prepaid(PAYER);
        check(challenge(id, scoreStep(lie)), "refuted");
        equal(statusOf(id), REFUTED, "status");
        vm.prank(CHALLENGER);
        vm.expectPartialRevert(AttributionCourt.WrongStatus.selector);
        court.challenge{value: 0.01 ether}(id, scoreStep(lie));

        court.close(id);
        vm.expectPartialRevert(AttributionCourt.WrongStatus.selector);
        court.close(id);
        uint256 bond = court.bondOf(FEE);
        equal(settlement.prepaid(PAYER), prepaid + FEE, "refund");
        equal(court.credit(CHALLENGER), bond - bond / 4 + 0.01 ether, "winner");
        equal(court.credit(TREASURY), bond / 4, "treasury");
        equal(court.bonds(OPERATOR), 20 ether - bond, "loser");
        vm.expectPartialRevert(AttributionCourt.WrongStatus.selector);
        court.collect(id, 0, FIRST, lie.share0, shareNode(SECOND, lie.share1));
    }

    function test_a_wrong_share_is_refuted() public {
        Trees memory lie = honest();
        lie.share0 += 5;
        lie.share1 -= 5;
        check(challenge(claim(lie), shareStep(lie)), "refuted");
    }

    function test_a_wrong_challenge_pays_the_operator() public {
        bytes32 id = claim(honest());
        check(!challenge(id, scoreStep(honest())), "upheld");
        check(!challenge(id, shareStep(honest())), "upheld");
        equal(court.credit(OPERATOR), 0.02 ether, "bonds");
        equal(statusOf(id), PENDING, "status");
        vm.prank(CHALLENGER);
        vm.expectRevert(bytes("poa verify: malformed step"));
        court.challenge{value: 0.01 ether}(id, hex"07");
        vm.prank(CHALLENGER);
        vm.expectPartialRevert(AttributionCourt.WrongStake.selector);
        court.challenge(id, scoreStep(honest()));
    }

    function test_revealing_keeps_a_claim_alive() public {
        bytes32 id = claim(honest());
        (bytes memory root, bytes memory row) = scoreRoot(honest());
        vm.warp(block.timestamp + court.WINDOW_S() - 10);
        requestReveal(id, root);
        vm.prank(CHALLENGER);
        vm.expectPartialRevert(AttributionCourt.RevealRefused.selector);
        court.requestReveal{value: 0.01 ether}(id, 0, 1, 0, root);
        vm.expectPartialRevert(AttributionCourt.TooEarly.selector);
        court.expireReveal(id, CHALLENGER);
        vm.warp(block.timestamp + 20);
        vm.expectPartialRevert(AttributionCourt.WindowOpen.selector);
        court.close(id);
        row[39] ^= 0x01;
        vm.expectPartialRevert(AttributionCourt.WrongRow.selector);
        court.answerReveal(id, CHALLENGER, row);
        row[39] ^= 0x01;
        court.answerReveal(id, CHALLENGER, row);
        equal(court.credit(OPERATOR), 0.01 ether, "paid for revealing");
        vm.expectPartialRevert(AttributionCourt.WindowOpen.selector);
        court.close(id);
        vm.warp(block.timestamp + court.RESPONSE_S());
        court.close(id);
        equal(statusOf(id), PAID, "status");
    }

    function test_silence_refutes() public {
        bytes32 id = claim(honest());
        (bytes memory root, bytes memory row) = scoreRoot(honest());
        requestReveal(id, root);
        vm.warp(block.timestamp + court.RESPONSE_S() + 1);
        vm.expectPartialRevert(AttributionCourt.TooLate.selector);
        court.answerReveal(id, CHALLENGER, row);
        court.expireReveal(id, CHALLENGER);
        court.close(id);
        uint256 bond = court.bondOf(FEE);
        equal(court.credit(CHALLENGER), bond - bond / 4 + 0.01 ether, "winner");
        vm.expectPartialRevert(AttributionCourt.NoReveal.selector);
        court.reclaimReveal(id, CHALLENGER);
    }

    function test_a_needless_reveal_is_given_back() public {
        Trees memory lie = honest();
        lie.share0 += 1;
        lie.share1 -= 1;
        bytes32 id = claim(lie);
        (bytes memory root,) = scoreRoot(lie);
        vm.deal(STRANGER, 1 ether);
        vm.prank(STRANGER);
        court.requestReveal{value: 0.01 ether}(id, 0, 1, 0, root);
        vm.expectPartialRevert(AttributionCourt.WrongStatus.selector);
        court.reclaimReveal(id, STRANGER);
        challenge(id, shareStep(lie));
        court.close(id);
        court.reclaimReveal(id, STRANGER);
        equal(court.credit(STRANGER), 0.01 ether, "given back");
        vm.expectPartialRevert(AttributionCourt.NoReveal.selector);
        court.reclaimReveal(id, STRANGER);
    }

    function test_an_answer_that_nobody_moved_pays_the_treasury() public {
        query = flat(-1);
        Trees memory trees = Trees({score0: -256, score1: -768, share0: 0, share1: 0});
        AttributionCourt.Posted memory claimed = posted(trees);
        claimed.weight = 0;
        (claimed.cutoffRemainder, claimed.cutoffPosition) = (0, 0);
        Receipt memory receipt = receiptFor();
        vm.prank(OPERATOR);
        bytes32 id = court.claim(receipt, query, claimed, 1, 0);
        check(!challenge(id, scoreStep(trees)), "upheld");
        afterWindow();
        court.close(id);
        equal(court.credit(TREASURY), pot(), "treasury");
        vm.expectPartialRevert(AttributionCourt.NothingToCollect.selector);
        court.collect(id, 0, FIRST, 0, shareNode(SECOND, 0));
    }

    function test_claims_are_checked() public {
        Receipt memory receipt = receiptFor();
        AttributionCourt.Posted memory good = posted(honest());
        vm.expectPartialRevert(AttributionCourt.NotOperator.selector);
        court.claim(receipt, query, good, 1, 0);

        expectRefused(receipt, flat(2), good, AttributionCourt.InvalidQuery.selector);
        bytes memory bad = flat(1);
        bad[77] = 0x80;
        receipt.queryHash = keccak256(bad);
        expectRefused(receipt, bad, good, AttributionCourt.InvalidQuery.selector);
        receipt.queryHash = keccak256(query);

        AttributionCourt.Posted memory wrong = posted(honest());
        (wrong.cutoffRemainder, wrong.cutoffPosition) = (0, 1);
        expectRefused(receipt, query, wrong, AttributionCourt.InvalidTotals.selector);
        (wrong.cutoffRemainder, wrong.cutoffPosition) = (1, 2);
        expectRefused(receipt, query, wrong, AttributionCourt.InvalidTotals.selector);
        (wrong.cutoffRemainder, wrong.cutoffPosition) = (1024, 0);
        expectRefused(receipt, query, wrong, AttributionCourt.InvalidTotals.selector);

        vm.prank(OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(AttributionCourt.WrongVersion.selector, model, uint64(1)));
        court.claim(receipt, query, good, 2, 0);

        receipt.feeWei += 1;
        expectRefused(receipt, query, good, InferenceSettlement.WrongFee.selector);
        receipt.feeWei -= 1;
        vm.prank(OPERATOR);
        court.takeBond(20 ether);
        expectRefused(receipt, query, good, AttributionCourt.InsufficientBond.selector);
        vm.prank(OPERATOR);
        court.addBond{value: 5 ether}();
        vm.prank(OPERATOR);
        court.claim(receipt, query, good, 1, 0);
        expectRefused(receipt, query, good, InferenceSettlement.AlreadySettled.selector);
    }

    function expectRefused(
        Receipt memory receipt,
        bytes memory sketch,
        AttributionCourt.Posted memory claimed,
        bytes4 selector
    ) private {
        vm.prank(OPERATOR);
        vm.expectPartialRevert(selector);
        court.claim(receipt, sketch, claimed, 1, 0);
    }

    function test_the_tiers_do_not_mix() public {
        Receipt memory receipt = receiptFor();
        vm.prank(OPERATOR);
        vm.expectPartialRevert(SketchStore.UnknownRoot.selector);
        settlement.settle(receipt, query, none);
        vm.prank(OPERATOR);
        vm.expectPartialRevert(InferenceSettlement.NotCourt.selector);
        settlement.escrow(receipt);

        ModelRegistry.Params memory params = paramsFor(receipt.sketchRoot);
        params.potsBps = [uint16(9_000), 1_000, 0];
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.PotsOfCommittedIndex.selector, params.sketchRoot));
        models.register("spans-model", params);
        receipt.evidenceHash = keccak256("evidence");
        expectRefused(receipt, query, posted(honest()), InferenceSettlement.WrongEvidence.selector);

        bytes32 root = sealOne(join2(entry0, entry1));
        vm.prank(OWNER);
        model = models.register("exact-model", paramsFor(root));
        receipt = receiptFor();
        vm.prank(OPERATOR);
        vm.expectPartialRevert(CommittedIndexes.UnknownIndex.selector);
        court.claim(receipt, query, posted(honest()), 1, 0);

        (bool accepted,) = ATTRIBUTION_COURT.call{value: 1}("");
        check(!accepted, "stray payment");
        vm.expectPartialRevert(CommittedIndexes.InvalidCounts.selector);
        court.commitIndex(0, 0, 2, 0, 3);
    }

    function join2(bytes memory a, bytes memory b) private pure returns (bytes memory) {
        return abi.encodePacked(a, b);
    }

    function test_nobody_is_paid_twice() public {
        Trees memory lie = honest();
        lie.share0 += 1;
        lie.share1 -= 1;
        bytes32 id = claim(lie);
        Greedy greedy = new Greedy();
        vm.deal(CHALLENGER, 1 ether);
        vm.prank(CHALLENGER);
        greedy.challenge{value: 0.01 ether}(id, shareStep(lie));
        court.close(id);
        uint256 owed = court.credit(address(greedy));
        greedy.withdraw();
        equal(address(greedy).balance, owed, "paid once");
        equal(greedy.calls(), 1, "calls");
    }
}

/// Goal: the twin gives the verdicts of an independent implementation.
contract CourtVectorsTest is Chain {
    function setUp() public {
        genesis();
    }

    function test_steps() public view {
        string memory json = vm.readFile("../fixtures/poa/court.json");
        uint256 steps = 0;
        uint256 i = 0;
        for (; vm.keyExistsJson(json, string.concat(".cases[", vm.toString(i), "]")); ++i) {
            string memory prefix = string.concat(".cases[", vm.toString(i), "].");
            Terms memory terms;
            terms.indexRoot = vm.parseJsonBytes32(json, string.concat(prefix, "index_root"));
            terms.nEntries = uint32(vm.parseJsonUint(json, string.concat(prefix, "n_entries")));
            terms.rangesRoot = vm.parseJsonBytes32(json, string.concat(prefix, "ranges_root"));
            terms.nContributors = uint32(vm.parseJsonUint(json, string.concat(prefix, "n_contributors")));
            terms.queryHash = keccak256(vm.parseJsonBytes(json, string.concat(prefix, "query")));
            terms.nullThreshold = uint64(vm.parseJsonUint(json, string.concat(prefix, "null_threshold")));
            terms.pot = uint128(vm.parseJsonUint(json, string.concat(prefix, "pot")));
            terms.cutoffRemainder = uint64(vm.parseJsonUint(json, string.concat(prefix, "cutoff_remainder")));
            terms.cutoffPosition = uint32(vm.parseJsonUint(json, string.concat(prefix, "cutoff_position")));
            steps += judge(json, prefix, terms);
        }
        equal(i, 7, "cases");
        check(steps > 50, "steps");
    }

    function judge(string memory json, string memory prefix, Terms memory terms) private view returns (uint256 i) {
        for (;; ++i) {
            string memory step = string.concat(prefix, "steps[", vm.toString(i), "]");
            if (!vm.keyExistsJson(json, step)) return i;
            bytes32[] memory roots = vm.parseJsonBytes32Array(json, string.concat(step, ".roots"));
            (terms.roots[0], terms.roots[1], terms.roots[2]) = (roots[0], roots[1], roots[2]);
            bool lie = IPoaVerify(POA_VERIFY).isLie(terms, vm.parseJsonBytes(json, string.concat(step, ".step")));
            check(lie == vm.parseJsonBool(json, string.concat(step, ".lie")), step);
        }
    }
}
