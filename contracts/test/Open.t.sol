// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC20} from "@openzeppelin/contracts/interfaces/IERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {INFERENCE_SETTLEMENT, OPEN, OPEN_TRANSFER} from "../src/l2/Addresses.sol";
import {Open} from "../src/l2/Open.sol";
import {IOpenTransfer} from "../src/l2/Precompiles.sol";
import {Chain} from "./support/Chain.sol";

/// Goal: the façade is the native balance, seen as an ERC-20; nobody moves what is not theirs.
contract OpenTest is Chain {
    address private constant ALICE = address(0xb1);
    address private constant BOB = address(0xb2);

    function setUp() public {
        genesis();
        vm.deal(ALICE, 100 ether);
        vm.deal(BOB, 1 ether);
    }

    function test_metadata() public view {
        equal(open.name(), "OPEN", "name");
        equal(open.symbol(), "OPEN", "symbol");
        equal(open.decimals(), 18, "decimals");
        equal(open.totalSupply(), 1e27, "supply");
        (bytes1 fields, string memory name, string memory version, uint256 chainId, address domain,,) =
            open.eip712Domain();
        check(fields == 0x0f && chainId == CHAIN_ID && domain == OPEN, "domain");
        equal(name, "OPEN", "domain name");
        equal(version, "1", "domain version");
    }

    function test_transferMovesNativeBalance() public {
        vm.expectEmit(true, true, false, true, OPEN);
        emit IERC20.Transfer(ALICE, BOB, 30 ether);
        vm.prank(ALICE);
        check(open.transfer(BOB, 30 ether), "returns true");
        equal(ALICE.balance, 70 ether, "from");
        equal(open.balanceOf(BOB), 31 ether, "to");
    }

    function test_transferToSelfChangesNothing() public {
        vm.prank(ALICE);
        open.transfer(ALICE, 100 ether);
        equal(ALICE.balance, 100 ether, "balance");
    }

    function test_transferRefused() public {
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientBalance.selector, ALICE, 100 ether, 100 ether + 1)
        );
        vm.prank(ALICE);
        open.transfer(BOB, 100 ether + 1);

        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, address(0)));
        vm.prank(ALICE);
        open.transfer(address(0), 1);

        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, OPEN));
        vm.prank(ALICE);
        open.transfer(OPEN, 1);
    }

    function test_onlyTheFacadeMoves() public {
        vm.expectRevert(bytes("transfer: only OPEN"));
        vm.prank(ALICE);
        IOpenTransfer(OPEN_TRANSFER).transfer(BOB, ALICE, 1);
    }

    function test_allowance() public {
        vm.expectEmit(true, true, false, true, OPEN);
        emit IERC20.Approval(ALICE, BOB, 10 ether);
        vm.prank(ALICE);
        open.approve(BOB, 10 ether);

        vm.prank(BOB);
        open.transferFrom(ALICE, STRANGER, 4 ether);
        equal(open.allowance(ALICE, BOB), 6 ether, "used up");
        equal(STRANGER.balance, 4 ether, "received");

        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, BOB, 6 ether, 7 ether));
        vm.prank(BOB);
        open.transferFrom(ALICE, STRANGER, 7 ether);

        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidSpender.selector, address(0)));
        vm.prank(ALICE);
        open.approve(address(0), 1);
    }

    function test_unlimitedAllowanceStays() public {
        vm.prank(ALICE);
        open.approve(BOB, type(uint256).max);
        vm.prank(BOB);
        open.transferFrom(ALICE, BOB, 5 ether);
        equal(open.allowance(ALICE, BOB), type(uint256).max, "allowance");
    }

    function testFuzz_transferConserves(uint256 a, uint256 b, uint256 amount) public {
        a %= 1e27;
        b %= 1e27;
        vm.deal(ALICE, a);
        vm.deal(BOB, b);
        vm.prank(ALICE);
        try open.transfer(BOB, amount) returns (bool) {
            check(amount <= a, "moved too much");
            equal(BOB.balance, b + amount, "to");
        } catch {
            check(amount > a, "refused too little");
            equal(BOB.balance, b, "to");
        }
        equal(ALICE.balance + BOB.balance, a + b, "sum");
    }

    // --- permit ----------------------------------------------------------------------------------

    uint256 private constant KEY = 0xa11ce;

    function sign(uint256 key, address owner, uint256 value, uint256 nonce, uint256 deadline)
        private
        view
        returns (uint8 v, bytes32 r, bytes32 s)
    {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("OPEN"),
                keccak256("1"),
                block.chainid,
                OPEN
            )
        );
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 message = keccak256(abi.encode(typehash, owner, BOB, value, nonce, deadline));
        return vm.sign(key, keccak256(abi.encodePacked(hex"1901", domain, message)));
    }

    function testFuzz_permit(uint256 value, uint256 seconds_) public {
        address owner = vm.addr(KEY);
        uint256 deadline = block.timestamp + seconds_ % 1e9;
        (uint8 v, bytes32 r, bytes32 s) = sign(KEY, owner, value, 0, deadline);
        open.permit(owner, BOB, value, deadline, v, r, s);
        equal(open.allowance(owner, BOB), value, "allowance");
        equal(open.nonces(owner), 1, "nonce");

        // The same permit again names a used nonce, so it recovers to another account.
        vm.expectPartialRevert(Open.PermitWrongSigner.selector);
        open.permit(owner, BOB, value, deadline, v, r, s);
    }

    function test_permitRefused() public {
        address owner = vm.addr(KEY);
        uint256 deadline = block.timestamp;
        (uint8 v, bytes32 r, bytes32 s) = sign(KEY, owner, 1, 0, deadline);

        vm.expectPartialRevert(Open.PermitWrongSigner.selector);
        open.permit(owner, BOB, 2, deadline, v, r, s);
        vm.expectPartialRevert(Open.PermitWrongSigner.selector);
        open.permit(STRANGER, BOB, 1, deadline, v, r, s);
        vm.expectRevert(ECDSA.ECDSAInvalidSignature.selector);
        open.permit(address(0), BOB, 1, deadline, 29, r, s);

        uint256 order = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
        bytes32 mirrored = bytes32(order - uint256(s));
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, mirrored));
        open.permit(owner, BOB, 1, deadline, v == 27 ? 28 : 27, r, mirrored);

        vm.chainId(CHAIN_ID + 1);
        vm.expectPartialRevert(Open.PermitWrongSigner.selector);
        open.permit(owner, BOB, 1, deadline, v, r, s);
        vm.chainId(CHAIN_ID);

        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(Open.PermitExpired.selector, deadline));
        open.permit(owner, BOB, 1, deadline, v, r, s);
    }
}
