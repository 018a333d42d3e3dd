// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ERC1967Proxy} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol";
import {Initializable} from "@openzeppelin/contracts/proxy/utils/Initializable.sol";
import {UUPSUpgradeable} from "@openzeppelin/contracts/proxy/utils/UUPSUpgradeable.sol";

/// @notice A value behind an upgradeable proxy.
contract Box is Initializable, UUPSUpgradeable {
    address public keeper;
    uint256 public value;

    event Stored(uint256 indexed value);

    error NotKeeper(address caller);

    constructor() {
        _disableInitializers();
    }

    function initialize(uint256 first) external initializer {
        keeper = msg.sender;
        value = first;
    }

    function store(uint256 next) external {
        value = next;
        emit Stored(next);
    }

    function version() external pure virtual returns (uint256) {
        return 1;
    }

    function _authorizeUpgrade(address) internal view override {
        if (msg.sender != keeper) revert NotKeeper(msg.sender);
    }
}

/// @notice What the box is upgraded to.
contract BoxTwo is Box {
    function version() external pure override returns (uint256) {
        return 2;
    }

    function increment() external {
        value += 1;
        emit Stored(value);
    }
}

/// @notice OpenZeppelin's proxy under a name of this project's, so that forge writes an artifact for it.
contract BoxProxy is ERC1967Proxy {
    constructor(address implementation, bytes memory call) ERC1967Proxy(implementation, call) {}
}
