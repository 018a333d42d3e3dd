// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {INFERENCE_SETTLEMENT, MODEL_REGISTRY, POA_SHARES, POA_VERIFY} from "./Addresses.sol";
import {CommittedIndexes} from "./CommittedIndexes.sol";
import {InferenceSettlement} from "./InferenceSettlement.sol";
import {ModelRegistry} from "./ModelRegistry.sol";
import {IPoaShares, IPoaVerify, Terms} from "./Precompiles.sol";
import {Receipt} from "./Receipt.sol";

/// @title Answers whose attribution is claimed, and paid unless somebody refutes it (specs/court.md)
/// @notice The operator posts commitments to every score, net and share of an answer, with a bond. Until the window is
/// over, anyone may show one step of them to be wrong, or make the operator reveal what is below a node. Who is right
/// gets the other's bond; a refuted answer costs its payer nothing.
/// @dev Storage: slot 0 CommittedIndexes, 1 claims, 2 reveals, 3 collected, 4 bonds, 5 credit. What the contract holds
/// is at least the sum of free bonds, credit, what pending and lost claims hold, bonds of open reveals and shares of
/// paid claims that were not collected.
contract AttributionCourt is CommittedIndexes, ReentrancyGuardTransient {
    enum Status {
        None,
        Pending,
        Paid,
        Refuted,
        Closed
    }

    /// @notice What the operator commits to. The totals that must agree with each other are given once.
    struct Posted {
        bytes32 scoresHash;
        bytes32 netsHash;
        bytes32 sharesHash;
        /// Sum of all scores, which is the sum of all nets.
        int64 net;
        /// Sum of all weights; if it is zero nobody has a share, else the shares add up to the pot.
        uint64 weight;
        uint64 cutoffRemainder;
        uint32 cutoffPosition;
    }

    struct Claim {
        address operator;
        /// When the window is over.
        uint64 deadline;
        Status status;
        /// Nobody's data moved the answer.
        bool isEmpty;
        uint16 openReveals;
        bytes32 indexId;
        bytes32 queryHash;
        bytes32 scores;
        bytes32 nets;
        bytes32 shares;
        uint128 pot;
        uint64 cutoffRemainder;
        uint32 cutoffPosition;
        uint128 fee;
        uint64 nullThreshold;
        address payer;
        uint64 version;
        bytes32 modelId;
        /// Who refuted it, and what they paid in for that.
        address winner;
        uint96 stake;
    }

    struct Reveal {
        bytes32 node;
        uint64 deadline;
        uint32 position;
        uint8 tree;
        uint8 level;
        uint8 count;
        bool isOpen;
    }

    /// @notice Only the operator of the settlement may claim.
    error NotOperator(address caller);
    /// @notice Only the settlement pays in without a call.
    error UnexpectedPayment(address from);
    /// @notice A query sketch is 256 codes, none of them -128, with the hash that the receipt names.
    error InvalidQuery();
    /// @notice Totals or cutoff contradict each other.
    error InvalidTotals();
    /// @notice The claim was computed for another version of the model than its newest.
    error WrongVersion(bytes32 modelId, uint64 newest);
    /// @notice The free bond is less than the claim needs.
    error InsufficientBond(address operator, uint256 free, uint256 needed);
    /// @notice The claim is not in the state that this needs.
    error WrongStatus(bytes32 id, Status status);
    /// @notice The call must carry exactly this value.
    error WrongStake(uint256 expected);
    /// @notice The window is still open, or something is still to be revealed.
    error WindowOpen(bytes32 id, uint64 deadline, uint256 openReveals);
    /// @notice The window or the time to reveal is over.
    error TooLate(uint64 deadline);
    /// @notice The time to reveal is not over.
    error TooEarly(uint64 deadline);
    /// @notice One reveal at a time for each challenger, of an inner node, and no more than 16 for a claim.
    error RevealRefused();
    /// @notice There is no such open reveal.
    error NoReveal(bytes32 id, address challenger);
    /// @notice What was revealed is not below the node that was asked for.
    error WrongRow(bytes32 expected, bytes32 given);
    /// @notice There is no such share, or it was collected.
    error NothingToCollect(bytes32 id, uint32 position);
    /// @notice The account is owed nothing.
    error NothingToWithdraw(address account);
    /// @notice An account is the zero address.
    error InvalidAccount();
    /// @notice The receiver refused the payment.
    error PaymentRefused(address to);

    event BondAdded(address indexed operator, uint256 amount);
    event BondTaken(address indexed operator, uint256 amount);
    /// @notice Everything a watcher needs beside the public objects; `data` names the one with the numbers.
    event Claimed(
        bytes32 indexed id,
        bytes32 indexed modelId,
        address indexed operator,
        uint64 version,
        uint64 deadline,
        uint128 pot,
        bytes query,
        Posted posted,
        bytes32 data
    );
    /// @notice A challenge failed: the claim is right there, and the challenger's bond is the operator's.
    event Upheld(bytes32 indexed id, address indexed challenger, bytes32 step);
    /// @notice A claim is wrong, or what is below one of its nodes was not revealed in time.
    event Refuted(bytes32 indexed id, address indexed winner, bool isTimeout);
    event RevealRequested(
        bytes32 indexed id, address indexed challenger, uint8 tree, uint8 level, uint32 position, uint64 deadline
    );
    event Revealed(bytes32 indexed id, address indexed challenger, uint8 tree, uint8 level, uint32 position, bytes row);
    /// @notice The window is over. Paid: the fee's parts are credited. Not paid: it is back at the payer.
    event ClaimClosed(bytes32 indexed id, bool paid);
    event Collected(bytes32 indexed id, address indexed contributor, uint32 position, uint256 share);
    event Withdrawn(address indexed account, address indexed to, uint256 amount);

    /// @notice How long a claim can be challenged, in seconds.
    uint64 public constant WINDOW_S = 12 hours;
    /// @notice How long the operator has to reveal, and a challenger to go on after that, in seconds.
    uint64 public constant RESPONSE_S = 1 hours;
    /// @notice What an operator's claim costs if it is wrong, beside the fee, in wei.
    uint256 public constant CLAIM_BOND = 0.1 ether;
    /// @notice What a wrong challenge costs, in wei.
    uint256 public constant CHALLENGE_BOND = 0.01 ether;
    /// @notice What the operator gets for revealing, in wei.
    uint256 public constant REVEAL_BOND = 0.01 ether;

    /// @dev Enough for a walk through all three trees.
    uint8 private constant REVEALS_MAX = 16;
    uint256 private constant QUERY_SIZE = 256;
    uint8 private constant SCORES = 0;
    uint8 private constant NETS = 1;
    uint8 private constant SHARES = 2;

    mapping(bytes32 id => Claim) private _claims;
    mapping(bytes32 id => mapping(address challenger => Reveal)) private _reveals;
    mapping(bytes32 id => mapping(uint256 word => uint256 bits)) private _collected;
    /// @notice An operator's bond that no pending claim holds, in wei.
    mapping(address operator => uint256) public bonds;
    /// @notice What an account has won or earned and not withdrawn, in wei.
    mapping(address account => uint256) public credit;

    /// @dev The fee of a claim comes this way, and nothing else.
    receive() external payable {
        if (msg.sender != INFERENCE_SETTLEMENT) revert UnexpectedPayment(msg.sender);
    }

    /// @notice Adds the value of the call to the caller's bond.
    function addBond() external payable {
        bonds[msg.sender] += msg.value;
        emit BondAdded(msg.sender, msg.value);
    }

    /// @notice Takes back what no claim holds of the caller's bond.
    function takeBond(uint256 amount) external nonReentrant {
        _lock(msg.sender, amount);
        emit BondTaken(msg.sender, amount);
        _pay(msg.sender, amount);
    }

    /// @notice What a claim of this fee holds of the operator's bond, in wei.
    function bondOf(uint256 fee) public pure returns (uint256) {
        return CLAIM_BOND + fee;
    }

    /// @notice Charges a receipt of an optimistic model and claims how its fee is shared.
    /// @param query the 256 codes of the query sketch
    /// @param posted commitments to the trees
    /// @param version of the model that the trees were computed for: a new one with another threshold or split, added in
    /// between, would make a lie of an honest claim
    /// @param data id of the object with all scores, nets and shares
    /// @return id the receipt's id, which is the claim's
    function claim(Receipt calldata receipt, bytes calldata query, Posted calldata posted, uint64 version, bytes32 data)
        external
        nonReentrant
        returns (bytes32 id)
    {
        if (msg.sender != InferenceSettlement(INFERENCE_SETTLEMENT).operator()) revert NotOperator(msg.sender);
        _requireQuery(query, receipt.queryHash);
        ModelRegistry.Params memory params = _current(receipt.modelId, version);
        uint256 pot = _parts(receipt.feeWei, params.splitBps)[3];
        _requireTotals(posted, indexOf(params.sketchRoot).nContributors);
        _lock(msg.sender, bondOf(receipt.feeWei));

        id = InferenceSettlement(INFERENCE_SETTLEMENT).escrow(receipt);
        Claim storage entry = _claims[id];
        entry.operator = msg.sender;
        entry.deadline = uint64(block.timestamp) + WINDOW_S;
        entry.status = Status.Pending;
        entry.isEmpty = posted.weight == 0;
        entry.indexId = params.sketchRoot;
        entry.queryHash = receipt.queryHash;
        _commit(entry, posted, pot);
        entry.fee = receipt.feeWei;
        entry.nullThreshold = params.nullThreshold;
        entry.payer = receipt.payer;
        entry.version = version;
        entry.modelId = receipt.modelId;
        _emitClaimed(id, entry, query, posted, data);
    }

    /// @notice Refutes a claim by one step, or loses the challenger's bond to the operator.
    /// @param step see specs/court.md; one that shows nothing either way reverts
    /// @return isRefuted whether the claim is wrong
    function challenge(bytes32 id, bytes calldata step) external payable returns (bool isRefuted) {
        if (msg.value != CHALLENGE_BOND) revert WrongStake(CHALLENGE_BOND);
        Claim storage entry = _in(id, Status.Pending);
        isRefuted = IPoaVerify(POA_VERIFY).isLie(_terms(entry), step);
        if (isRefuted) {
            _refute(id, entry, msg.sender, CHALLENGE_BOND, false);
        } else {
            credit[entry.operator] += CHALLENGE_BOND;
            emit Upheld(id, msg.sender, keccak256(step));
        }
    }

    /// @notice Makes the operator reveal what is below a node, or lose.
    /// @param tree 0 scores, 1 nets, 2 shares
    /// @param level of the node, above the leaves; at least 1
    /// @param position of the node in its level
    /// @param path the node and its siblings up to the root
    function requestReveal(bytes32 id, uint8 tree, uint8 level, uint32 position, bytes calldata path) external payable {
        if (msg.value != REVEAL_BOND) revert WrongStake(REVEAL_BOND);
        Claim storage entry = _in(id, Status.Pending);
        if (block.timestamp >= entry.deadline) revert TooLate(entry.deadline);
        Reveal storage request = _reveals[id][msg.sender];
        if (request.isOpen || request.count == REVEALS_MAX || level == 0) revert RevealRefused();
        request.node = IPoaVerify(POA_VERIFY).open(_terms(entry), tree, level, position, path);
        request.deadline = uint64(block.timestamp) + RESPONSE_S;
        request.position = position;
        request.tree = tree;
        request.level = level;
        request.isOpen = true;
        ++request.count;
        ++entry.openReveals;
        emit RevealRequested(id, msg.sender, tree, level, position, request.deadline);
    }

    /// @notice Reveals what `challenger` asked for; anyone may, for the operator.
    /// @param row the nodes four levels below, or the leaves
    function answerReveal(bytes32 id, address challenger, bytes calldata row) external {
        Claim storage entry = _in(id, Status.Pending);
        Reveal storage request = _openReveal(id, challenger);
        if (block.timestamp > request.deadline) revert TooLate(request.deadline);
        bytes32 node = IPoaVerify(POA_VERIFY).reveal(request.tree, request.level, row);
        if (node != request.node) revert WrongRow(request.node, node);
        request.isOpen = false;
        --entry.openReveals;
        credit[entry.operator] += REVEAL_BOND;
        // The challenger must have time to use what it learned.
        uint64 deadline = uint64(block.timestamp) + RESPONSE_S;
        if (deadline > entry.deadline) entry.deadline = deadline;
        emit Revealed(id, challenger, request.tree, request.level, request.position, row);
    }

    /// @notice Refutes a claim whose operator did not reveal in time what `challenger` asked for.
    function expireReveal(bytes32 id, address challenger) external {
        Claim storage entry = _in(id, Status.Pending);
        Reveal storage request = _openReveal(id, challenger);
        if (block.timestamp <= request.deadline) revert TooEarly(request.deadline);
        request.isOpen = false;
        --entry.openReveals;
        _refute(id, entry, challenger, REVEAL_BOND, true);
    }

    /// @notice Gives back the bond of a reveal that somebody else's challenge made needless.
    function reclaimReveal(bytes32 id, address challenger) external {
        Claim storage entry = _claims[id];
        if (entry.status != Status.Refuted && entry.status != Status.Closed) revert WrongStatus(id, entry.status);
        _openReveal(id, challenger).isOpen = false;
        --entry.openReveals;
        credit[challenger] += REVEAL_BOND;
    }

    /// @notice Pays a claim whose window is over, or undoes one that was refuted.
    function close(bytes32 id) external nonReentrant {
        Claim storage entry = _claims[id];
        ModelRegistry models = ModelRegistry(MODEL_REGISTRY);
        uint256 bond = bondOf(entry.fee);
        if (entry.status == Status.Pending) {
            if (block.timestamp < entry.deadline || entry.openReveals != 0) {
                revert WindowOpen(id, entry.deadline, entry.openReveals);
            }
            entry.status = Status.Paid;
            bonds[entry.operator] += bond;
            ModelRegistry.Params memory params = models.versionOf(entry.modelId, entry.version);
            uint256[] memory parts = _parts(entry.fee, params.splitBps);
            InferenceSettlement settlement = InferenceSettlement(INFERENCE_SETTLEMENT);
            credit[settlement.platform()] += parts[0];
            credit[models.ownerOf(entry.modelId)] += parts[1];
            credit[settlement.stakersPool()] += parts[2];
            if (entry.isEmpty) credit[params.treasury] += parts[3];
            emit ClaimClosed(id, true);
        } else if (entry.status == Status.Refuted) {
            entry.status = Status.Closed;
            // A quarter goes past the winner: an operator who refutes itself first still loses that.
            uint256 rest = bond / 4;
            credit[entry.winner] += bond - rest + entry.stake;
            credit[models.versionOf(entry.modelId, entry.version).treasury] += rest;
            emit ClaimClosed(id, false);
            InferenceSettlement(INFERENCE_SETTLEMENT).depositFor{value: entry.fee}(entry.payer);
        } else {
            revert WrongStatus(id, entry.status);
        }
    }

    /// @notice Credits a contributor's share of a paid claim; anyone may call.
    /// @param position of the contributor, from 0
    /// @param path the siblings of its leaf in the tree of shares, from the bottom
    function collect(bytes32 id, uint32 position, address contributor, uint128 share, bytes calldata path) external {
        Claim storage entry = _in(id, Status.Paid);
        bytes32 leaf = keccak256(abi.encodePacked(uint8(0), contributor, share));
        IPoaVerify(POA_VERIFY).open(_terms(entry), SHARES, 0, position, abi.encodePacked(leaf, share, path));
        uint256 bit = 1 << (position & 0xff);
        uint256 bits = _collected[id][position >> 8];
        if (bits & bit != 0 || share == 0) revert NothingToCollect(id, position);
        _collected[id][position >> 8] = bits | bit;
        credit[contributor] += share;
        emit Collected(id, contributor, position, share);
    }

    /// @notice Pays the caller's credit to `to`.
    /// @return amount what was paid, in wei
    function withdraw(address to) external nonReentrant returns (uint256 amount) {
        if (to == address(0)) revert InvalidAccount();
        return _withdraw(msg.sender, to);
    }

    /// @notice Pays the credit of `account` to that account; anyone may call.
    /// @return amount what was paid, in wei
    function withdrawFor(address account) external nonReentrant returns (uint256 amount) {
        return _withdraw(account, account);
    }

    /// @notice The claim of a receipt; its status is `None` if there is none.
    function claimOf(bytes32 id) external view returns (Claim memory) {
        return _claims[id];
    }

    /// @notice What a claim is judged by.
    function termsOf(bytes32 id) external view returns (Terms memory) {
        return _terms(_claims[id]);
    }

    /// @notice The reveal that `challenger` asked for last.
    function revealOf(bytes32 id, address challenger) external view returns (Reveal memory) {
        return _reveals[id][challenger];
    }

    function _withdraw(address account, address to) private returns (uint256 amount) {
        amount = credit[account];
        if (amount == 0) revert NothingToWithdraw(account);
        credit[account] = 0;
        emit Withdrawn(account, to, amount);
        _pay(to, amount);
    }

    function _current(bytes32 modelId, uint64 version) private view returns (ModelRegistry.Params memory params) {
        uint64 newest;
        (, newest, params) = ModelRegistry(MODEL_REGISTRY).current(modelId);
        if (newest != version) revert WrongVersion(modelId, newest);
    }

    function _refute(bytes32 id, Claim storage entry, address winner, uint256 stake, bool isTimeout) private {
        entry.status = Status.Refuted;
        entry.winner = winner;
        // forge-lint: disable-next-line(unsafe-typecast)
        entry.stake = uint96(stake);
        emit Refuted(id, winner, isTimeout);
    }

    function _commit(Claim storage entry, Posted calldata posted, uint256 pot) private {
        // forge-lint: disable-start(unsafe-typecast)
        uint128 shares = posted.weight == 0 ? 0 : uint128(pot);
        entry.pot = uint128(pot);
        // forge-lint: disable-end(unsafe-typecast)
        entry.scores = keccak256(abi.encodePacked(uint8(2), posted.scoresHash, posted.net));
        entry.nets = keccak256(abi.encodePacked(uint8(2), posted.netsHash, posted.net, posted.weight));
        entry.shares = keccak256(abi.encodePacked(uint8(2), posted.sharesHash, shares));
        entry.cutoffRemainder = posted.cutoffRemainder;
        entry.cutoffPosition = posted.cutoffPosition;
    }

    function _emitClaimed(bytes32 id, Claim storage entry, bytes calldata query, Posted calldata posted, bytes32 data)
        private
    {
        emit Claimed(id, entry.modelId, msg.sender, entry.version, entry.deadline, entry.pot, query, posted, data);
    }

    function _in(bytes32 id, Status status) private view returns (Claim storage entry) {
        entry = _claims[id];
        if (entry.status != status) revert WrongStatus(id, entry.status);
    }

    function _openReveal(bytes32 id, address challenger) private view returns (Reveal storage request) {
        request = _reveals[id][challenger];
        if (!request.isOpen) revert NoReveal(id, challenger);
    }

    function _terms(Claim storage entry) private view returns (Terms memory terms) {
        Commitment memory index = indexOf(entry.indexId);
        terms.indexRoot = index.root;
        terms.nEntries = index.nEntries;
        terms.rangesRoot = index.rangesRoot;
        terms.nContributors = index.nContributors;
        terms.queryHash = entry.queryHash;
        terms.nullThreshold = entry.nullThreshold;
        terms.pot = entry.pot;
        terms.roots[SCORES] = entry.scores;
        terms.roots[NETS] = entry.nets;
        terms.roots[SHARES] = entry.shares;
        terms.cutoffRemainder = entry.cutoffRemainder;
        terms.cutoffPosition = entry.cutoffPosition;
    }

    /// @dev A byte of `word` is 0x80 where a byte of `word ^ 0x80…80` is zero.
    function _requireQuery(bytes calldata query, bytes32 queryHash) private pure {
        if (query.length != QUERY_SIZE || keccak256(query) != queryHash) revert InvalidQuery();
        uint256 ones = type(uint256).max / 0xff;
        uint256 found = 0;
        for (uint256 i = 0; i < QUERY_SIZE; i += 32) {
            uint256 word = uint256(bytes32(query[i:i + 32])) ^ (ones << 7);
            unchecked {
                found |= (word - ones) & ~word & (ones << 7);
            }
        }
        if (found != 0) revert InvalidQuery();
    }

    /// @dev What one step cannot show, because it is about the totals alone.
    function _requireTotals(Posted calldata posted, uint32 nContributors) private pure {
        uint64 remainder = posted.cutoffRemainder;
        uint32 position = posted.cutoffPosition;
        bool valid = remainder == 0 ? position == 0 : remainder < posted.weight && position < nContributors;
        if (!valid) revert InvalidTotals();
    }

    function _parts(uint256 fee, uint16[4] memory splitBps) private view returns (uint256[] memory) {
        uint64[] memory weights = new uint64[](4);
        for (uint256 i = 0; i < 4; ++i) {
            weights[i] = splitBps[i];
        }
        return IPoaShares(POA_SHARES).shares(fee, weights);
    }

    function _lock(address operator, uint256 amount) private {
        uint256 free = bonds[operator];
        if (free < amount) revert InsufficientBond(operator, free, amount);
        unchecked {
            bonds[operator] = free - amount;
        }
    }

    function _pay(address to, uint256 amount) private {
        // The receiver's return data is not copied: it could make the caller pay for a megabyte of it.
        bool paid;
        assembly ("memory-safe") {
            paid := call(gas(), to, amount, 0, 0, 0, 0)
        }
        if (!paid) revert PaymentRefused(to);
    }
}
