// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {IPoaVerify, Terms} from "../../src/l2/Precompiles.sol";

// forge-lint: disable-start(unsafe-typecast)

/// @notice POA_VERIFY in Solidity, written from specs/court.md: slow and obvious, an oracle for the precompile.
/// @dev A node is its bytes: a hash, then big-endian numbers, each of which is summed on its own.
contract PoaVerifyTwin is IPoaVerify {
    uint256 private constant ENTRY = 186;
    string private constant MALFORMED = "poa verify: malformed step";
    string private constant UNPROVEN = "poa verify: the step is not part of the claim";

    /// @dev Takes bytes from the front.
    struct Reader {
        bytes data;
        uint256 offset;
    }

    function isLie(Terms calldata terms, bytes calldata step) external pure returns (bool lie) {
        require(terms.nEntries >= 1 && terms.nEntries <= 1 << 20, MALFORMED);
        require(terms.nContributors >= 1 && terms.nContributors <= 1 << 14, MALFORMED);
        require(terms.nContributors <= terms.nEntries, MALFORMED);
        Reader memory reader = Reader(step, 0);
        uint256 kind = number(reader, 1);
        if (kind == 1) lie = scoreStep(terms, reader);
        else if (kind == 2) lie = netStep(terms, reader);
        else if (kind == 3) lie = boundaryStep(terms, reader);
        else if (kind == 4) lie = shareStep(terms, reader);
        else if (kind == 5) lie = sumStep(terms, reader);
        else if (kind == 6) lie = formStep(terms, reader);
        else if (kind == 7) lie = entryStep(terms, reader);
        else if (kind == 8) lie = pairStep(terms, reader);
        else revert(MALFORMED);
        end(reader);
    }

    function open(Terms calldata terms, uint8 tree, uint32 level, uint32 position, bytes calldata path)
        external
        pure
        returns (bytes32 node)
    {
        require(tree < 3, MALFORMED);
        Reader memory reader = Reader(path, 0);
        bytes memory opened = take(reader, sizeOf(tree));
        climb(terms, reader, tree, level, position, opened);
        end(reader);
        return commitment(opened);
    }

    function reveal(uint8 tree, uint32 level, bytes calldata row) external pure returns (bytes32 node) {
        require(tree < 3, MALFORMED);
        uint256 n = 2 ** (level < 4 ? level : 4);
        uint256 size = sizeOf(tree);
        require(row.length == n * size, MALFORMED);
        bytes[] memory nodes = new bytes[](n);
        for (uint256 i = 0; i < n; ++i) {
            nodes[i] = row[i * size:(i + 1) * size];
        }
        for (; n > 1; n /= 2) {
            for (uint256 i = 0; i < n / 2; ++i) {
                nodes[i] = parent(tree, nodes[2 * i], nodes[2 * i + 1]);
            }
        }
        return commitment(nodes[0]);
    }

    // --- steps -----------------------------------------------------------------------------------

    function scoreStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        uint256 position = number(reader, 4);
        int64 claimed = int64(uint64(number(reader, 8)));
        climb(terms, reader, 0, 0, position, scoreLeaf(uint32(position), claimed));
        require(position < terms.nEntries, MALFORMED);
        bytes memory entry = take(reader, ENTRY);
        member(reader, terms.indexRoot, terms.nEntries, position, keccak256(abi.encodePacked(uint8(0), entry)));
        bytes memory query = take(reader, 256);
        require(keccak256(query) == terms.queryHash, UNPROVEN);
        int256 dot = 0;
        for (uint256 j = 0; j < 256; ++j) {
            require(query[j] != 0x80, MALFORMED);
            // The high half of byte j is code j, the low half code 128 + j; above 7 they are negative.
            uint256 pair = uint8(entry[58 + j % 128]);
            int256 code = int256(j < 128 ? pair / 16 : pair % 16);
            if (code > 7) code -= 16;
            dot += int256(int8(uint8(query[j]))) * code;
        }
        return claimed != dot * int256(read(entry, 56, 2));
    }

    function formStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        uint256 position = number(reader, 4);
        bytes memory leaf = take(reader, 40);
        climb(terms, reader, 0, 0, position, leaf);
        if (position >= terms.nEntries) return !same(leaf, new bytes(40));
        return !same(leaf, scoreLeaf(uint32(position), int64(uint64(read(leaf, 32, 8)))));
    }

    function indexEntry(Terms calldata terms, Reader memory reader)
        private
        pure
        returns (uint256 position, bytes memory entry)
    {
        position = number(reader, 4);
        entry = take(reader, ENTRY);
        member(reader, terms.indexRoot, terms.nEntries, position, keccak256(abi.encodePacked(uint8(0), entry)));
    }

    function entryStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        (, bytes memory entry) = indexEntry(terms, reader);
        if (read(entry, 56, 2) == 0) return true;
        for (uint256 j = 58; j < ENTRY; ++j) {
            if (uint8(entry[j]) / 16 == 8 || uint8(entry[j]) % 16 == 8) return true;
        }
        return false;
    }

    function pairStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        (uint256 first, bytes memory one) = indexEntry(terms, reader);
        (uint256 second, bytes memory other) = indexEntry(terms, reader);
        require(first < second, MALFORMED);
        (uint256 cluster, uint256 otherCluster) = (read(one, 52, 4), read(other, 52, 4));
        if (cluster == otherCluster) return true;
        (uint256 contributor, uint256 otherContributor) = (read(one, 0, 20), read(other, 0, 20));
        return contributor == otherContributor ? cluster > otherCluster : contributor > otherContributor;
    }

    function netStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        uint256 position = number(reader, 4);
        bytes memory leaf = take(reader, 48);
        climb(terms, reader, 1, 0, position, leaf);
        if (position >= terms.nContributors) return !same(leaf, new bytes(48));
        bytes memory range = take(reader, 24);
        member(reader, terms.rangesRoot, terms.nContributors, position, keccak256(abi.encodePacked(uint8(0), range)));
        int64 net = int64(uint64(read(leaf, 32, 8)));
        uint256 weight = 0;
        if (net > 0 && uint64(net) > terms.nullThreshold) weight = uint64(net) - terms.nullThreshold;
        return bytes32(leaf) != keccak256(abi.encodePacked(uint8(0), range, net)) || read(leaf, 40, 8) != weight;
    }

    function boundaryStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        uint256 position = number(reader, 4);
        bytes memory leaf;
        uint256 after_;
        (leaf, after_) = netLeaf(reader);
        (, uint256[2] memory nets) = climb(terms, reader, 1, 0, position, leaf);
        require(after_ >= 1 && after_ <= terms.nEntries, MALFORMED);
        int64 last = int64(uint64(number(reader, 8)));
        bytes memory score = scoreLeaf(uint32(after_ - 1), last);
        (, uint256[2] memory scores) = climb(terms, reader, 0, 0, after_ - 1, score);
        unchecked {
            return uint64(nets[0] + read(leaf, 32, 8)) != uint64(scores[0] + uint64(last));
        }
    }

    function shareStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        uint256 position = number(reader, 4);
        bytes memory leaf = take(reader, 48);
        climb(terms, reader, 2, 0, position, leaf);
        if (position >= terms.nContributors) return !same(leaf, new bytes(48));
        bytes20 contributor = bytes20(peek(reader, 20));
        (bytes memory net,) = netLeaf(reader);
        (bytes memory root,) = climb(terms, reader, 1, 0, position, net);
        uint256 total = read(root, 40, 8);
        uint256 share = 0;
        uint256 remainder = 0;
        if (total != 0) {
            share = uint256(terms.pot) * read(net, 40, 8) / total;
            remainder = uint256(terms.pot) * read(net, 40, 8) % total;
        }
        uint256 cutoff = terms.cutoffRemainder;
        if (position == terms.cutoffPosition && remainder != cutoff) return true;
        bool above = remainder > cutoff || (remainder == cutoff && position <= terms.cutoffPosition);
        if (remainder != 0 && above) share += 1;
        uint128 given = uint128(read(leaf, 32, 16));
        return given != share || bytes32(leaf) != keccak256(abi.encodePacked(uint8(0), contributor, given));
    }

    function sumStep(Terms calldata terms, Reader memory reader) private pure returns (bool) {
        uint256 tree = number(reader, 1);
        uint256 level = number(reader, 1);
        require(tree < 3 && level > 0, MALFORMED);
        uint256 position = number(reader, 4);
        bytes memory node = take(reader, sizeOf(tree));
        bytes memory left = take(reader, sizeOf(tree));
        bytes memory right = take(reader, sizeOf(tree));
        climb(terms, reader, tree, level, position, node);
        bytes memory expected = parent(tree, left, right);
        require(bytes32(expected) == bytes32(node), UNPROVEN);
        return !same(expected, node);
    }

    // --- trees -----------------------------------------------------------------------------------

    function sizeOf(uint256 tree) private pure returns (uint256) {
        return tree == 0 ? 40 : 48;
    }

    function depthOf(uint256 n) private pure returns (uint256 depth) {
        while (2 ** depth < n) ++depth;
    }

    function scoreLeaf(uint32 position, int64 score) private pure returns (bytes memory) {
        return abi.encodePacked(keccak256(abi.encodePacked(uint8(0), position, score)), score);
    }

    /// @dev contributor, end, net, weight; the weight is not hashed.
    function netLeaf(Reader memory reader) private pure returns (bytes memory leaf, uint256 after_) {
        bytes memory preimage = take(reader, 32);
        bytes memory weight = take(reader, 8);
        after_ = read(preimage, 20, 4);
        leaf = abi.encodePacked(
            keccak256(abi.encodePacked(uint8(0), preimage)), bytes8(uint64(read(preimage, 24, 8))), weight
        );
    }

    function commitment(bytes memory node) private pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(2), node));
    }

    function parent(uint256 tree, bytes memory left, bytes memory right) private pure returns (bytes memory) {
        bytes32 hash = keccak256(abi.encodePacked(uint8(1), left, right));
        unchecked {
            if (tree == 0) return abi.encodePacked(hash, uint64(read(left, 32, 8) + read(right, 32, 8)));
            if (tree == 2) return abi.encodePacked(hash, uint128(read(left, 32, 16) + read(right, 32, 16)));
            return abi.encodePacked(
                hash, uint64(read(left, 32, 8) + read(right, 32, 8)), uint64(read(left, 40, 8) + read(right, 40, 8))
            );
        }
    }

    /// @dev The root, and for scores and nets the sum of the first number to the left.
    function climb(
        Terms calldata terms,
        Reader memory reader,
        uint256 tree,
        uint256 level,
        uint256 position,
        bytes memory node
    ) private pure returns (bytes memory root, uint256[2] memory before) {
        uint256 depth = depthOf(tree == 0 ? terms.nEntries : terms.nContributors);
        require(level <= depth && position >> (depth - level) == 0, MALFORMED);
        root = node;
        for (; level < depth; ++level) {
            bytes memory sibling = take(reader, sizeOf(tree));
            if (position % 2 == 0) {
                root = parent(tree, root, sibling);
            } else {
                before[0] += read(sibling, 32, 8);
                root = parent(tree, sibling, root);
            }
            position /= 2;
        }
        require(commitment(root) == terms.roots[tree], UNPROVEN);
    }

    function member(Reader memory reader, bytes32 root, uint256 n, uint256 position, bytes32 hash) private pure {
        for (uint256 depth = depthOf(n); depth > 0; --depth) {
            bytes32 sibling = bytes32(take(reader, 32));
            hash = position % 2 == 0
                ? keccak256(abi.encodePacked(uint8(1), hash, sibling))
                : keccak256(abi.encodePacked(uint8(1), sibling, hash));
            position /= 2;
        }
        require(position == 0 && hash == root, UNPROVEN);
    }

    // --- bytes -----------------------------------------------------------------------------------

    function peek(Reader memory reader, uint256 size) private pure returns (bytes memory) {
        return take(Reader(reader.data, reader.offset), size);
    }

    function take(Reader memory reader, uint256 size) private pure returns (bytes memory taken) {
        require(reader.data.length - reader.offset >= size, MALFORMED);
        taken = new bytes(size);
        bytes memory data = reader.data;
        uint256 from = reader.offset;
        assembly ("memory-safe") {
            mcopy(add(taken, 0x20), add(add(data, 0x20), from), size)
        }
        reader.offset += size;
    }

    function number(Reader memory reader, uint256 size) private pure returns (uint256) {
        return read(take(reader, size), 0, size);
    }

    function read(bytes memory data, uint256 offset, uint256 size) private pure returns (uint256 value) {
        for (uint256 i = 0; i < size; ++i) {
            value = value << 8 | uint8(data[offset + i]);
        }
    }

    function end(Reader memory reader) private pure {
        require(reader.offset == reader.data.length, MALFORMED);
    }

    function same(bytes memory a, bytes memory b) private pure returns (bool) {
        return keccak256(a) == keccak256(b);
    }
}
