// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ATTRIBUTION_COURT, MODEL_REGISTRY, POA_SCORE, POA_SHARES, SKETCH_STORE} from "./Addresses.sol";
import {ModelRegistry} from "./ModelRegistry.sol";
import {IPoaScore, IPoaShares} from "./Precompiles.sol";
import {Evidence, Receipt, hashOf} from "./Receipt.sol";
import {SketchStore} from "./SketchStore.sol";

/// @title Prepaid balances, and what an answer's fee becomes
/// @notice A receipt charges its payer once. In the same transaction the chain recomputes from the committed sketches
/// whose data moved the answer, and credits each part of the fee; the parts add up to the fee to the wei. The
/// contributors' part has up to three pots: training (scores recomputed here), spans and context (weights that the receipt
/// commits to); see specs/poa.md, "Pots".
/// @dev The operator is trusted to report answers honestly (prompt, tokens, query sketch, evidence); it is not trusted with
/// prices, splits, scores or shares, which are all recomputed here. A payer may withdraw what no receipt has charged yet,
/// so an operator settles before it lets an account run up more than it is ready to lose.
///
/// Native OPEN can be moved here without a call (`Open.transfer`, a block's fees), so the invariant is
/// `balance >= sum of prepaid + sum of credit`; what is above belongs to nobody.
///
/// Storage, written by genesis: slot 0 platform, slot 1 operator, slot 2 stakersPool. Then: slot 3 pendingPlatform,
/// 4 prepaid, 5 credit, 6 settledAt, 7 receiptOf.
contract InferenceSettlement is ReentrancyGuardTransient {
    /// @notice The caller does not have the role.
    error NotOperator(address caller);
    error NotCourt(address caller);
    error NotPlatform(address caller);
    error NotPendingPlatform(address caller);
    /// @notice An account is the zero address.
    error InvalidAccount();
    /// @notice The receipt is for another chain or contract.
    error WrongSettlement(uint64 chainId, address settlement);
    /// @notice The receipt, or another one for the same request, was settled before.
    error AlreadySettled(bytes32 requestId, bytes32 receiptId);
    /// @notice The receipt names another base, adapter, manifest or sketch index than the model's newest version.
    error WrongModel(bytes32 modelId, uint64 version);
    /// @notice The fee is not the model's price.
    error WrongFee(uint256 expected, uint256 given);
    /// @notice The query sketch is not the one the receipt commits to.
    error WrongQuery(bytes32 expected, bytes32 given);
    /// @notice The evidence is not what the receipt commits to.
    error WrongEvidence(bytes32 expected, bytes32 given);
    /// @notice A list of evidence is for a pot without money, or is not a total and 1 to 256 contributors, strictly
    /// ascending, each with a weight, that add up to no more than the total.
    error InvalidEvidence(uint8 pot);
    /// @notice The account has less than that.
    error InsufficientPrepaid(address account, uint256 balance, uint256 needed);
    /// @notice The account has no credit.
    error NothingToClaim(address account);
    /// @notice The receiver refused the payment.
    error PaymentRefused(address to);
    /// @notice Amounts do not match what was to be divided: a fault of the precompile, never of the caller.
    error SharesBroken(uint256 pot, uint256 sum);

    event Deposited(address indexed account, address indexed from, uint256 amount);
    event Withdrawn(address indexed account, uint256 amount);
    event Claimed(address indexed account, address indexed to, uint256 amount);
    /// @notice A fee was charged and split; the last six amounts, three of them pots, add up to `fee`.
    event Settled(
        bytes32 indexed receiptId,
        bytes32 indexed modelId,
        address indexed payer,
        uint256 fee,
        uint256 platform,
        uint256 model,
        uint256 stakers,
        uint256 training,
        uint256 spans,
        uint256 context
    );
    /// @notice Who got what of a pot, and for which weights. Emitted for the pots of spans (1) and context (2) if there is
    /// evidence, then always for training (0): empty if nobody's data moved the answer.
    event Credited(
        bytes32 indexed receiptId, uint8 indexed pot, address[] contributors, uint64[] weights, uint256[] amounts
    );
    /// @notice Nobody's data moved the answer: the pot for training went to the model's treasury.
    event TreasuryCredited(bytes32 indexed receiptId, address indexed treasury, uint256 amount);
    /// @notice A fee was charged and is held by the AttributionCourt until its claim is closed.
    event Escrowed(bytes32 indexed receiptId, bytes32 indexed modelId, address indexed payer, uint256 fee);
    event OperatorChanged(address indexed operator);
    event StakersPoolChanged(address indexed stakersPool);
    event PlatformOffered(address indexed to);
    event PlatformChanged(address indexed platform);

    uint8 private constant TRAINING = 0;
    uint8 private constant SPANS = 1;
    uint8 private constant CONTEXT = 2;
    /// @dev Contributors of a list of evidence, and bytes of each.
    uint256 private constant EVIDENCE_MAX = 256;
    uint256 private constant EVIDENCE_SIZE = 28;
    /// @dev Bytes of a list's total, before its contributors.
    uint256 private constant TOTAL_SIZE = 8;

    /// @dev A list of evidence: by what a pot is shared, and how much of it is earned, `sum / total`.
    struct Earned {
        address[] contributors;
        uint64[] weights;
        uint256 sum;
        uint256 total;
    }

    /// @notice Gets the platform's part, and appoints the other roles.
    address public platform;
    /// @notice The only account that may settle.
    address public operator;
    /// @notice Gets the stakers' part.
    address public stakersPool;
    /// @notice Whom the platform's role is offered to.
    address public pendingPlatform;
    /// @notice What an account has paid in and no receipt has charged, in wei.
    mapping(address account => uint256) public prepaid;
    /// @notice What an account has earned and not claimed, in wei.
    mapping(address account => uint256) public credit;
    /// @notice The block in which a receipt settled; 0 if it did not.
    mapping(bytes32 receiptId => uint256 blockNumber) public settledAt;
    /// @notice The receipt that settled a request; 0 if none did.
    mapping(bytes32 requestId => bytes32 receiptId) public receiptOf;

    modifier onlyPlatform() {
        if (msg.sender != platform) revert NotPlatform(msg.sender);
        _;
    }

    /// @notice Adds the value of the call to the caller's prepaid balance.
    function deposit() external payable {
        _deposit(msg.sender);
    }

    /// @notice Adds the value of the call to the prepaid balance of `account`.
    function depositFor(address account) external payable {
        if (account == address(0)) revert InvalidAccount();
        _deposit(account);
    }

    /// @notice Takes back `amount` of the caller's prepaid balance.
    function withdraw(uint256 amount) external nonReentrant {
        _takePrepaid(msg.sender, amount);
        emit Withdrawn(msg.sender, amount);
        _pay(msg.sender, amount);
    }

    /// @notice Charges a receipt and credits everybody who has a part in it.
    /// @param receipt as specs/receipt.md; its id is keccak256 of its encoding
    /// @param query the 256 codes of the query sketch, whose hash the receipt holds
    /// @param evidence who is paid for spans and context, whose hash the receipt holds
    /// @return receiptId the receipt's id
    function settle(Receipt calldata receipt, bytes calldata query, Evidence calldata evidence)
        external
        nonReentrant
        returns (bytes32 receiptId)
    {
        if (msg.sender != operator) revert NotOperator(msg.sender);
        receiptId = keccak256(abi.encode(receipt));
        (address owner, ModelRegistry.Params memory params) = _check(receipt, keccak256(query), hashOf(evidence));

        settledAt[receiptId] = block.number;
        receiptOf[receipt.requestId] = receiptId;
        _takePrepaid(receipt.payer, receipt.feeWei);

        uint256[] memory parts = _split(receipt.feeWei, params.splitBps);
        credit[platform] += parts[0];
        credit[owner] += parts[1];
        credit[stakersPool] += parts[2];
        Earned memory spans = _earned(SPANS, evidence.spans);
        Earned memory context = _earned(CONTEXT, evidence.context);
        uint256[] memory pots = _splitPots(parts[3], params.potsBps, spans, context);
        _emitSettled(receiptId, receipt, parts, pots);
        _creditEarned(receiptId, SPANS, spans, pots[SPANS]);
        _creditEarned(receiptId, CONTEXT, context, pots[CONTEXT]);
        _creditTraining(receiptId, params, query, pots[TRAINING]);
    }

    /// @notice Charges a receipt of an optimistic model; the AttributionCourt holds the fee until nobody can refute how
    /// it is shared.
    /// @return receiptId the receipt's id
    function escrow(Receipt calldata receipt) external nonReentrant returns (bytes32 receiptId) {
        if (msg.sender != ATTRIBUTION_COURT) revert NotCourt(msg.sender);
        Evidence memory none;
        _check(receipt, receipt.queryHash, hashOf(none));
        receiptId = keccak256(abi.encode(receipt));
        receiptOf[receipt.requestId] = receiptId;
        _takePrepaid(receipt.payer, receipt.feeWei);
        emit Escrowed(receiptId, receipt.modelId, receipt.payer, receipt.feeWei);
        _pay(ATTRIBUTION_COURT, receipt.feeWei);
    }

    /// @notice Pays the caller's credit to `to`.
    /// @return amount what was paid, in wei
    function claim(address to) external nonReentrant returns (uint256 amount) {
        if (to == address(0)) revert InvalidAccount();
        return _claim(msg.sender, to);
    }

    /// @notice Pays the credit of `account` to that account; anyone may call.
    /// @return amount what was paid, in wei
    function claimFor(address account) external nonReentrant returns (uint256 amount) {
        return _claim(account, account);
    }

    /// @notice What the newest version of a model charges for an answer, in wei.
    function quote(bytes32 modelId, uint32 tokensIn, uint32 tokensOut) external view returns (uint256 fee) {
        (,, ModelRegistry.Params memory params) = ModelRegistry(MODEL_REGISTRY).current(modelId);
        return _quote(params, tokensIn, tokensOut);
    }

    /// @notice Whether this receipt was settled.
    function settled(bytes32 receiptId) external view returns (bool) {
        return settledAt[receiptId] != 0;
    }

    /// @notice Appoints who may settle.
    function setOperator(address account) external onlyPlatform {
        if (account == address(0)) revert InvalidAccount();
        operator = account;
        emit OperatorChanged(account);
    }

    /// @notice Changes who gets the stakers' part from now on; credit already given stays where it is.
    function setStakersPool(address account) external onlyPlatform {
        if (account == address(0)) revert InvalidAccount();
        stakersPool = account;
        emit StakersPoolChanged(account);
    }

    /// @notice Offers the platform's role to `to`, who must accept; zero takes an offer back.
    function offerPlatform(address to) external onlyPlatform {
        pendingPlatform = to;
        emit PlatformOffered(to);
    }

    /// @notice Takes over the platform's role.
    function acceptPlatform() external {
        if (msg.sender != pendingPlatform) revert NotPendingPlatform(msg.sender);
        platform = msg.sender;
        pendingPlatform = address(0);
        emit PlatformChanged(msg.sender);
    }

    /// @dev Everything a receipt can be wrong in, but the payer's balance.
    function _check(Receipt calldata receipt, bytes32 queryHash, bytes32 evidenceHash)
        private
        view
        returns (address owner, ModelRegistry.Params memory params)
    {
        if (receipt.chainId != block.chainid || receipt.settlement != address(this)) {
            revert WrongSettlement(receipt.chainId, receipt.settlement);
        }
        // A receipt's id covers its request, so this also refuses a receipt settled before.
        bytes32 settledBy = receiptOf[receipt.requestId];
        if (settledBy != 0) revert AlreadySettled(receipt.requestId, settledBy);
        if (queryHash != receipt.queryHash) revert WrongQuery(receipt.queryHash, queryHash);
        if (evidenceHash != receipt.evidenceHash) revert WrongEvidence(receipt.evidenceHash, evidenceHash);

        uint64 version;
        (owner, version, params) = ModelRegistry(MODEL_REGISTRY).current(receipt.modelId);
        bool isCurrent = receipt.baseHash == params.baseHash && receipt.adapterHash == params.adapterHash
            && receipt.manifestHash == params.manifestHash && receipt.sketchRoot == params.sketchRoot;
        if (!isCurrent) revert WrongModel(receipt.modelId, version);
        uint256 expected = _quote(params, receipt.tokensIn, receipt.tokensOut);
        if (receipt.feeWei != expected) revert WrongFee(expected, receipt.feeWei);
    }

    function _emitSettled(bytes32 receiptId, Receipt calldata receipt, uint256[] memory parts, uint256[] memory pots)
        private
    {
        emit Settled(
            receiptId,
            receipt.modelId,
            receipt.payer,
            receipt.feeWei,
            parts[0],
            parts[1],
            parts[2],
            pots[TRAINING],
            pots[SPANS],
            pots[CONTEXT]
        );
    }

    function _earned(uint8 pot, bytes calldata list) private pure returns (Earned memory earned) {
        if (list.length == 0) return earned;
        if (list.length < TOTAL_SIZE) revert InvalidEvidence(pot);
        uint256 n = (list.length - TOTAL_SIZE) / EVIDENCE_SIZE;
        bool isList = n > 0 && n <= EVIDENCE_MAX && list.length == TOTAL_SIZE + n * EVIDENCE_SIZE;
        if (!isList) revert InvalidEvidence(pot);
        earned.contributors = new address[](n);
        earned.weights = new uint64[](n);
        earned.total = uint64(bytes8(list[:TOTAL_SIZE]));
        address previous = address(0);
        for (uint256 i = 0; i < n; ++i) {
            uint256 start = TOTAL_SIZE + i * EVIDENCE_SIZE;
            address contributor = address(bytes20(list[start:start + 20]));
            uint64 weight = uint64(bytes8(list[start + 20:start + EVIDENCE_SIZE]));
            if (contributor <= previous || weight == 0) revert InvalidEvidence(pot);
            (earned.contributors[i], earned.weights[i]) = (contributor, weight);
            earned.sum += weight;
            previous = contributor;
        }
        if (earned.sum > earned.total) revert InvalidEvidence(pot);
    }

    function _creditEarned(bytes32 receiptId, uint8 pot, Earned memory earned, uint256 amount) private {
        if (earned.total == 0) return;
        uint256[] memory amounts = _shares(amount, earned.weights);
        _credit(earned.contributors, amounts);
        emit Credited(receiptId, pot, earned.contributors, earned.weights, amounts);
    }

    function _credit(address[] memory contributors, uint256[] memory amounts) private {
        for (uint256 i = 0; i < contributors.length; ++i) {
            credit[contributors[i]] += amounts[i];
        }
    }

    function _creditTraining(bytes32 receiptId, ModelRegistry.Params memory params, bytes calldata query, uint256 pot)
        private
    {
        (address[] memory chunks,) = SketchStore(SKETCH_STORE).indexOf(params.sketchRoot);
        (address[] memory contributors, uint64[] memory weights) =
            IPoaScore(POA_SCORE).score(chunks, params.nullThreshold, query);
        uint256[] memory amounts = new uint256[](0);
        if (contributors.length == 0) {
            credit[params.treasury] += pot;
            emit TreasuryCredited(receiptId, params.treasury, pot);
        } else {
            amounts = _shares(pot, weights);
            _credit(contributors, amounts);
        }
        emit Credited(receiptId, TRAINING, contributors, weights, amounts);
    }

    /// @dev What is not earned of a pot falls to training, which is where the contributors of the model are paid in any
    /// case: who leaves evidence out takes from some contributors to the profit of others, never to one's own.
    function _splitPots(uint256 amount, uint16[3] memory potsBps, Earned memory spans, Earned memory context)
        private
        view
        returns (uint256[] memory pots)
    {
        uint64[] memory weights = new uint64[](3);
        for (uint256 i = 0; i < 3; ++i) {
            weights[i] = potsBps[i];
        }
        pots = _shares(amount, weights);
        pots[SPANS] = _paid(SPANS, potsBps, pots[SPANS], spans);
        pots[CONTEXT] = _paid(CONTEXT, potsBps, pots[CONTEXT], context);
        pots[TRAINING] = amount - pots[SPANS] - pots[CONTEXT];
    }

    /// @dev What of a pot is earned. A fee is below 2^128 and a sum below 2^64.
    function _paid(uint8 pot, uint16[3] memory potsBps, uint256 amount, Earned memory earned)
        private
        pure
        returns (uint256)
    {
        if (earned.total == 0) return 0;
        if (potsBps[pot] == 0) revert InvalidEvidence(pot);
        return amount * earned.sum / earned.total;
    }

    function _split(uint256 fee, uint16[4] memory splitBps) private view returns (uint256[] memory) {
        uint64[] memory weights = new uint64[](4);
        for (uint256 i = 0; i < 4; ++i) {
            weights[i] = splitBps[i];
        }
        return _shares(fee, weights);
    }

    /// @dev Divides `pot`, and checks that nothing is lost or made.
    function _shares(uint256 pot, uint64[] memory weights) private view returns (uint256[] memory amounts) {
        amounts = IPoaShares(POA_SHARES).shares(pot, weights);
        uint256 sum = 0;
        for (uint256 i = 0; i < amounts.length; ++i) {
            sum += amounts[i];
        }
        if (sum != pot || amounts.length != weights.length) revert SharesBroken(pot, sum);
    }

    /// @dev Below 2^128 by the limits on prices in the ModelRegistry.
    function _quote(ModelRegistry.Params memory params, uint256 tokensIn, uint256 tokensOut)
        private
        pure
        returns (uint256)
    {
        return tokensIn * params.priceInPerKTokens / 1000 + tokensOut * params.priceOutPerKTokens / 1000
            + params.platformFee;
    }

    function _deposit(address account) private {
        prepaid[account] += msg.value;
        emit Deposited(account, msg.sender, msg.value);
    }

    function _takePrepaid(address account, uint256 amount) private {
        uint256 balance = prepaid[account];
        if (balance < amount) revert InsufficientPrepaid(account, balance, amount);
        unchecked {
            prepaid[account] = balance - amount;
        }
    }

    function _claim(address account, address to) private returns (uint256 amount) {
        amount = credit[account];
        if (amount == 0) revert NothingToClaim(account);
        credit[account] = 0;
        emit Claimed(account, to, amount);
        _pay(to, amount);
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
