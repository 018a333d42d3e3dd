// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {OPEN} from "../../src/l2/Addresses.sol";
import {IOpenTransfer, IPoaScore, IPoaShares} from "../../src/l2/Precompiles.sol";
import {Vm} from "./Vm.sol";

/// @notice POA_SCORE in Solidity, written from specs/poa.md: slow and obvious, an oracle for the precompile.
contract PoaScoreTwin is IPoaScore {
    uint256 private constant ENTRY = 186;

    function score(address[] calldata chunks, uint64 nullThreshold, bytes calldata query)
        external
        view
        returns (address[] memory contributors, uint64[] memory weights)
    {
        require(query.length == 256, "query: 256 codes");
        int256[256] memory q;
        for (uint256 j = 0; j < 256; ++j) {
            q[j] = _signed(query[j]);
        }
        require(chunks.length >= 1 && chunks.length <= 128, "index: 1 to 128 chunks");

        contributors = new address[](chunks.length * 128);
        int256[] memory nets = new int256[](chunks.length * 128);
        uint256 n = 0;
        uint256 previousKey = 0;
        for (uint256 c = 0; c < chunks.length; ++c) {
            bytes memory code = chunks[c].code;
            require(code.length > 1 && code[0] == 0 && (code.length - 1) % ENTRY == 0, "chunk: size");
            uint256 size = (code.length - 1) / ENTRY;
            require(size <= 128 && (c + 1 == chunks.length || size == 128), "chunk: entries");
            for (uint256 i = 0; i < size; ++i) {
                uint256 offset = 1 + i * ENTRY;
                uint256 contributor = _read(code, offset, 20);
                uint256 key = contributor << 32 | _read(code, offset + 52, 4);
                require((c == 0 && i == 0) || key > previousKey, "entry: order");
                previousKey = key;
                if (n == 0 || contributors[n - 1] != address(uint160(contributor))) {
                    contributors[n++] = address(uint160(contributor));
                }
                nets[n - 1] += _dot(q, code, offset + 58) * int256(_scale(code, offset + 56));
            }
        }
        return _positive(contributors, nets, n, nullThreshold);
    }

    function _positive(address[] memory all, int256[] memory nets, uint256 n, uint64 nullThreshold)
        private
        pure
        returns (address[] memory contributors, uint64[] memory weights)
    {
        int256 threshold = int256(uint256(nullThreshold));
        uint256 paid = 0;
        for (uint256 i = 0; i < n; ++i) {
            if (nets[i] > threshold) ++paid;
        }
        contributors = new address[](paid);
        weights = new uint64[](paid);
        paid = 0;
        for (uint256 i = 0; i < n; ++i) {
            if (nets[i] <= threshold) continue;
            contributors[paid] = all[i];
            weights[paid++] = uint64(uint256(nets[i] - threshold));
        }
    }

    function _dot(int256[256] memory q, bytes memory code, uint256 offset) private pure returns (int256 sum) {
        for (uint256 j = 0; j < 128; ++j) {
            uint8 pair = uint8(code[offset + j]);
            sum += q[j] * _half(pair / 16) + q[128 + j] * _half(pair % 16);
        }
    }

    /// @dev Four bits as a signed number.
    function _half(uint8 bits) private pure returns (int256) {
        require(bits != 8, "code: -8");
        return bits < 8 ? int256(uint256(bits)) : int256(uint256(bits)) - 16;
    }

    function _scale(bytes memory code, uint256 offset) private pure returns (uint256 scale) {
        scale = _read(code, offset, 2);
        require(scale != 0, "entry: scale");
    }

    function _signed(bytes1 code) private pure returns (int256) {
        require(code != 0x80, "code: -128");
        return int8(uint8(code));
    }

    function _read(bytes memory data, uint256 offset, uint256 size) private pure returns (uint256 value) {
        for (uint256 i = 0; i < size; ++i) {
            value = value << 8 | uint8(data[offset + i]);
        }
    }
}

/// @notice POA_SHARES in Solidity, written from specs/poa.md: an oracle for the precompile.
contract PoaSharesTwin is IPoaShares {
    function shares(uint256 pot, uint64[] calldata weights) external pure returns (uint256[] memory amounts) {
        uint256 n = weights.length;
        require(pot < 2 ** 128 && n <= 16384, "shares: limits");
        amounts = new uint256[](n);
        uint256 sum = 0;
        for (uint256 i = 0; i < n; ++i) {
            require(weights[i] < 2 ** 63, "shares: weight");
            sum += weights[i];
        }
        if (sum == 0) return amounts;

        uint256[] memory remainders = new uint256[](n);
        uint256 left = pot;
        for (uint256 i = 0; i < n; ++i) {
            amounts[i] = pot * weights[i] / sum;
            // One more than the remainder, so that 0 can mean "has had its unit".
            remainders[i] = pot * weights[i] % sum + 1;
            left -= amounts[i];
        }
        for (; left > 0; --left) {
            uint256 best = 0;
            for (uint256 i = 1; i < n; ++i) {
                if (remainders[i] > remainders[best]) best = i;
            }
            remainders[best] = 0;
            amounts[best] += 1;
        }
    }
}

/// @notice Stands for OPEN_TRANSFER: moves native balance by cheatcode, since no contract can take it from others.
contract OpenTransferDouble is IOpenTransfer {
    Vm private constant VM = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    function transfer(address from, address to, uint256 amount) external {
        require(msg.sender == OPEN, "transfer: only OPEN");
        require(from.balance >= amount, "transfer: balance");
        VM.deal(from, from.balance - amount);
        VM.deal(to, to.balance + amount);
    }
}
