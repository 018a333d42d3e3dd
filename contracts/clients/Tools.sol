// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @notice Every way to fail.
contract Failures {
    error Refused(address caller, uint256 code, string why);

    function custom(uint256 code) external view {
        revert Refused(msg.sender, code, "because");
    }

    function reason() external pure {
        revert("plain reason");
    }

    function overflow(uint256 value) external pure returns (uint256) {
        return value + 1;
    }

    function silent() external pure {
        assembly ("memory-safe") {
            revert(0, 0)
        }
    }

    function nested(uint256 code) external view {
        this.custom(code);
    }
}

/// @notice The interface that client libraries call to read many values at once.
contract Multicall {
    struct Call {
        address target;
        bool allowFailure;
        bytes callData;
    }

    struct Result {
        bool success;
        bytes returnData;
    }

    error CallFailed(uint256 index);

    function aggregate3(Call[] calldata calls) external payable returns (Result[] memory results) {
        results = new Result[](calls.length);
        for (uint256 i = 0; i < calls.length; i++) {
            (bool success, bytes memory data) = calls[i].target.call(calls[i].callData);
            if (!success && !calls[i].allowFailure) revert CallFailed(i);
            results[i] = Result(success, data);
        }
    }
}

/// @notice Code that an account delegates to (EIP-7702) in order to do several things in one transaction.
contract Batch {
    struct Call {
        address to;
        uint256 value;
        bytes data;
    }

    event Executed(uint256 calls);

    error NotSelf(address caller);

    receive() external payable {}

    function execute(Call[] calldata calls) external payable {
        if (msg.sender != address(this)) revert NotSelf(msg.sender);
        for (uint256 i = 0; i < calls.length; i++) {
            (bool success,) = calls[i].to.call{value: calls[i].value}(calls[i].data);
            require(success, "call failed");
        }
        emit Executed(calls.length);
    }
}
