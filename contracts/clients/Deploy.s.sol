// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Badge} from "./Badge.sol";
import {Box, BoxProxy, BoxTwo} from "./Box.sol";
import {Token} from "./Token.sol";

interface Broadcast {
    function startBroadcast(uint256 key) external;
    function stopBroadcast() external;
    function addr(uint256 key) external pure returns (address);
    function envUint(string calldata name) external view returns (uint256);
}

/// @notice What a project's deployment looks like: contracts, a proxy, roles, an upgrade; ten transactions.
contract Deploy {
    Broadcast private constant VM = Broadcast(address(uint160(uint256(keccak256("hevm cheat code")))));

    bool public constant IS_SCRIPT = true;

    function run() external returns (Token token, Badge badge, Box box) {
        uint256 key = VM.envUint("DEPLOYER_KEY");
        address deployer = VM.addr(key);
        address[] memory holders = new address[](1);
        holders[0] = deployer;

        VM.startBroadcast(key);
        token = new Token(holders, 1000 ether);
        token.grantRole(token.MINTER(), deployer);
        token.mint(address(0xBEEF), 5 ether);
        badge = new Badge();
        badge.mint(deployer, 7);
        Box first = new Box();
        box = Box(address(new BoxProxy(address(first), abi.encodeCall(Box.initialize, (41)))));
        BoxTwo second = new BoxTwo();
        box.upgradeToAndCall(address(second), abi.encodeCall(BoxTwo.increment, ()));
        box.store(43);
        VM.stopBroadcast();

        require(box.version() == 2 && box.value() == 43, "not upgraded");
        require(badge.ownerOf(7) == deployer, "not minted");
    }
}
