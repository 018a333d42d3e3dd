// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ATTRIBUTION_COURT, INFERENCE_SETTLEMENT} from "../src/l2/Addresses.sol";
import {AttributionCourt} from "../src/l2/AttributionCourt.sol";
import {CourtBase} from "./AttributionCourt.t.sol";

/// @dev Does what operators, watchers, contributors and strangers may do, in any order, right or wrong.
contract CourtHandler is CourtBase {
    address[] public accounts;
    bytes32[] public ids;
    mapping(bytes32 id => bool) public isLie;
    mapping(bytes32 id => Trees) private trees;
    mapping(bytes32 id => uint256) public collected;
    uint256 public honestRefuted;

    constructor(bytes32 model_, bytes memory query_, bytes memory entry0_, bytes memory entry1_, address[] memory who) {
        model = model_;
        query = query_;
        entry0 = entry0_;
        entry1 = entry1_;
        accounts = who;
    }

    function count() external view returns (uint256) {
        return ids.length;
    }

    function pick(uint256 seed) private view returns (bytes32 id) {
        return ids[seed % ids.length];
    }

    function post(uint8 kind) external {
        if (court.bonds(OPERATOR) < court.bondOf(FEE) || settlement.prepaid(PAYER) < FEE) return;
        Trees memory claimed = honest();
        if (kind % 3 == 1) {
            claimed.score0 += 1;
            claimed.score1 -= 1;
        } else if (kind % 3 == 2) {
            claimed.share0 += 1;
            claimed.share1 -= 1;
        }
        bytes32 id = claim(claimed);
        ids.push(id);
        trees[id] = claimed;
        isLie[id] = kind % 3 != 0;
    }

    function accuse(uint256 which, bool aboutScore) external {
        if (ids.length == 0) return;
        bytes32 id = pick(which);
        if (court.claimOf(id).status != AttributionCourt.Status.Pending) return;
        if (CHALLENGER.balance < 0.01 ether) return;
        bool refuted = challenge(id, aboutScore ? scoreStep(trees[id]) : shareStep(trees[id]));
        if (refuted && !isLie[id]) ++honestRefuted;
    }

    function ask(uint256 which) external {
        if (ids.length == 0 || CHALLENGER.balance < 0.01 ether) return;
        bytes32 id = pick(which);
        AttributionCourt.Claim memory found = court.claimOf(id);
        if (found.status != AttributionCourt.Status.Pending || block.timestamp >= found.deadline) return;
        AttributionCourt.Reveal memory last = court.revealOf(id, CHALLENGER);
        if (last.isOpen || last.count == 16) return;
        (bytes memory root,) = scoreRoot(trees[id]);
        requestReveal(id, root);
    }

    /// @dev The operator answers in time for as long as it is honest; a liar may be late.
    function answer(uint256 which, uint16 late) external {
        if (ids.length == 0) return;
        bytes32 id = pick(which);
        AttributionCourt.Reveal memory open_ = court.revealOf(id, CHALLENGER);
        if (!open_.isOpen) return;
        AttributionCourt.Status status = court.claimOf(id).status;
        if (status != AttributionCourt.Status.Pending) {
            court.reclaimReveal(id, CHALLENGER);
            return;
        }
        if (isLie[id] && late % 2 == 0 && block.timestamp <= open_.deadline) vm.warp(open_.deadline + 1);
        if (block.timestamp > open_.deadline) {
            court.expireReveal(id, CHALLENGER);
            if (!isLie[id]) isLie[id] = true;
        } else {
            (, bytes memory row) = scoreRoot(trees[id]);
            court.answerReveal(id, CHALLENGER, row);
        }
    }

    function finish(uint256 which, uint16 later) external {
        vm.warp(block.timestamp + later % 20_000);
        if (ids.length == 0) return;
        bytes32 id = pick(which);
        try court.close(id) {} catch {}
    }

    function take(uint256 which, bool first) external {
        if (ids.length == 0) return;
        bytes32 id = pick(which);
        Trees memory claimed = trees[id];
        bytes memory left = shareNode(FIRST, claimed.share0);
        bytes memory right = shareNode(SECOND, claimed.share1);
        if (first) {
            try court.collect(id, 0, FIRST, claimed.share0, right) {
                collected[id] += claimed.share0;
            } catch {}
        } else {
            try court.collect(id, 1, SECOND, claimed.share1, left) {
                collected[id] += claimed.share1;
            } catch {}
        }
    }

    function withdraw(uint256 who) external {
        address account = accounts[who % accounts.length];
        if (court.credit(account) == 0) return;
        vm.prank(account);
        court.withdraw(account);
    }

    function bond(uint256 amount, bool isMore) external {
        uint256 free = court.bonds(OPERATOR);
        vm.prank(OPERATOR);
        if (isMore) court.addBond{value: amount % (OPERATOR.balance + 1)}();
        else court.takeBond(amount % (free + 1));
    }
}

/// Goal: no order of claims, challenges and silence makes or loses a wei, or refutes an honest claim by a step.
/// Method: random calls by a handler; after each, the court holds exactly what it owes.
contract CourtConservationTest is CourtBase {
    CourtHandler private handler;
    address[] private accounts;
    uint256 private total;

    function setUp() public {
        build();
        accounts = [OPERATOR, CHALLENGER, PLATFORM, OWNER, STAKERS, TREASURY, FIRST, SECOND, PAYER];
        handler = new CourtHandler(model, query, entry0, entry1, accounts);
        total = everything();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function everything() private view returns (uint256 sum) {
        sum = ATTRIBUTION_COURT.balance + INFERENCE_SETTLEMENT.balance;
        for (uint256 i = 0; i < accounts.length; ++i) {
            sum += accounts[i].balance;
        }
    }

    function owed() private view returns (uint256 sum) {
        sum = court.bonds(OPERATOR);
        for (uint256 i = 0; i < accounts.length; ++i) {
            sum += court.credit(accounts[i]);
        }
        for (uint256 i = 0; i < handler.count(); ++i) {
            bytes32 id = handler.ids(i);
            AttributionCourt.Claim memory found = court.claimOf(id);
            if (court.revealOf(id, CHALLENGER).isOpen) sum += court.REVEAL_BOND();
            if (found.status == AttributionCourt.Status.Pending || found.status == AttributionCourt.Status.Refuted) {
                sum += court.bondOf(found.fee) + found.fee + found.stake;
            } else if (found.status == AttributionCourt.Status.Paid) {
                if (!found.isEmpty) sum += found.pot - handler.collected(id);
            }
        }
    }

    function invariant_conservation() external view {
        equal(ATTRIBUTION_COURT.balance, owed(), "owed");
        equal(everything(), total, "total");
        equal(handler.honestRefuted(), 0, "an honest claim refuted");
    }
}
