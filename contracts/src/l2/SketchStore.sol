// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Merkle} from "./Merkle.sol";

/// @title Sketch indexes on chain (specs/poa.md)
/// @notice An index is cut into chunks of 128 entries. `write` checks one chunk, hashes it and keeps it as the code of
/// an account; `seal` puts chunks together to an index, whose root a model then names.
/// @dev Everything here is determined by the bytes written, so anyone may write and seal: there is nothing to own and
/// nothing to front-run. Storage: slot 0 chunks by account, slot 1 indexes by root.
contract SketchStore {
    /// @dev What `seal` needs to know of a chunk. Keys are `contributor << 32 | cluster`.
    struct Chunk {
        bytes32 root;
        uint192 firstKey;
        uint16 nEntries;
        uint192 lastKey;
    }

    struct Index {
        address list;
        uint16 nChunks;
        uint32 nEntries;
    }

    /// @notice A chunk is 1 to 128 entries of 186 bytes.
    error ChunkSize(uint256 sizeBytes);
    /// @notice Entries must ascend strictly by (contributor, cluster), the first contributor being no zero address.
    error EntryOrder(uint256 entry);
    /// @notice A code is -8, which has no opposite.
    error EntryCode(uint256 entry);
    /// @notice A scale is zero.
    error EntryScale(uint256 entry);
    /// @notice An index is 1 to 128 chunks.
    error IndexSize(uint256 nChunks);
    /// @notice This account is no chunk written here.
    error UnknownChunk(address chunk);
    /// @notice Only the last chunk of an index may be short.
    error ShortChunk(address chunk);
    /// @notice The chunk does not continue where the one before it ended.
    error ChunkOrder(address chunk);
    /// @notice A duplicate cluster is paid once: it appears once in an index.
    error DuplicateCluster(uint32 cluster);
    /// @notice No index with this root was sealed.
    error UnknownRoot(bytes32 root);
    /// @notice The account could not be created (out of gas in the creation).
    error DeployFailed();

    event ChunkWritten(address indexed chunk, bytes32 root, uint16 nEntries);
    event IndexSealed(bytes32 indexed root, uint32 nEntries, uint16 nChunks);

    uint256 private constant ENTRY_SIZE = 186;
    uint256 private constant CHUNK_ENTRIES = 128;
    uint256 private constant INDEX_CHUNKS = 128;
    /// @dev Offset of the fields in an entry.
    uint256 private constant CLUSTER_AT = 52;
    uint256 private constant SCALE_AT = 56;
    uint256 private constant CODES_AT = 58;

    mapping(address account => Chunk) private _chunks;
    mapping(bytes32 root => Index) private _indexes;

    /// @notice Writes a chunk: its account's code is a zero byte (STOP), then `chunk`.
    /// @dev Writing the same chunk again changes nothing and returns the same account.
    /// @param chunk 1 to 128 entries of 186 bytes
    /// @return account where the chunk is
    function write(bytes calldata chunk) external returns (address account) {
        uint256 n = _requireChunkSize(chunk);
        bytes memory initCode = _initCode(chunk);
        account = _create2Address(keccak256(initCode));
        if (_chunks[account].nEntries != 0) return account;
        Chunk memory checked = _check(chunk, n);
        _chunks[account] = checked;
        _deploy(initCode);
        emit ChunkWritten(account, checked.root, checked.nEntries);
    }

    /// @notice Seals an index.
    /// @dev Checks that every chunk but the last is full, that entries ascend over the borders, and that no cluster
    /// appears twice. Sealing the same index again changes nothing.
    /// @param chunks the accounts of its chunks, in order
    /// @return root the sketch root, computed from the chunks
    function seal(address[] calldata chunks) external returns (bytes32 root) {
        uint256 n = chunks.length;
        if (n == 0 || n > INDEX_CHUNKS) revert IndexSize(n);
        uint256 width = 1;
        while (width < n) width <<= 1;
        bytes32[] memory roots = new bytes32[](width);
        uint256 nEntries = 0;
        uint192 previousKey = 0;
        for (uint256 i = 0; i < n; ++i) {
            Chunk memory chunk = _chunks[chunks[i]];
            if (chunk.nEntries == 0) revert UnknownChunk(chunks[i]);
            if (i + 1 < n && chunk.nEntries != CHUNK_ENTRIES) revert ShortChunk(chunks[i]);
            if (chunk.firstKey <= previousKey) revert ChunkOrder(chunks[i]);
            previousKey = chunk.lastKey;
            nEntries += chunk.nEntries;
            roots[i] = chunk.root;
        }
        root = Merkle.root(roots);
        if (_indexes[root].nChunks != 0) return root;
        _requireDistinctClusters(chunks, nEntries);

        // The list of chunks is kept as code, too: at 128 chunks that costs a fifth of storing them as words.
        bytes memory list = new bytes(n * 20);
        for (uint256 i = 0; i < n; ++i) {
            address chunk = chunks[i];
            assembly ("memory-safe") {
                // The address goes to the scratch space first, so that no byte past the list is touched.
                mstore(0, shl(96, chunk))
                mcopy(add(add(list, 0x20), mul(i, 20)), 0, 20)
            }
        }
        // forge-lint: disable-next-line(unsafe-typecast)
        Index memory index = Index({list: _deploy(_initCode(list)), nChunks: uint16(n), nEntries: uint32(nEntries)});
        _indexes[root] = index;
        emit IndexSealed(root, index.nEntries, index.nChunks);
    }

    /// @notice Whether an index with this root was sealed.
    function isSealed(bytes32 root) external view returns (bool) {
        return _indexes[root].nChunks != 0;
    }

    /// @notice The chunks of a sealed index; reverts if there is none with this root.
    /// @return chunks the accounts of its chunks, in order
    /// @return nEntries how many entries it has
    function indexOf(bytes32 root) external view returns (address[] memory chunks, uint32 nEntries) {
        Index memory index = _indexes[root];
        if (index.nChunks == 0) revert UnknownRoot(root);
        nEntries = index.nEntries;
        address list = index.list;
        uint256 n = index.nChunks;
        chunks = new address[](n);
        bytes memory packed = new bytes(n * 20);
        assembly ("memory-safe") {
            extcodecopy(list, add(packed, 0x20), 1, mul(n, 20))
            for { let i := 0 } lt(i, n) { i := add(i, 1) } {
                mstore(add(add(chunks, 0x20), shl(5, i)), shr(96, mload(add(add(packed, 0x20), mul(i, 20)))))
            }
        }
    }

    /// @notice What is known of a chunk; all zero if it was not written here.
    /// @return root the root of its tree of depth 7
    /// @return nEntries how many entries it has
    function chunkOf(address account) external view returns (bytes32 root, uint16 nEntries) {
        return (_chunks[account].root, _chunks[account].nEntries);
    }

    /// @notice Where `write` puts, or would put, this chunk.
    function chunkAddress(bytes calldata chunk) external view returns (address) {
        _requireChunkSize(chunk);
        return _create2Address(keccak256(_initCode(chunk)));
    }

    function _requireChunkSize(bytes calldata chunk) private pure returns (uint256 nEntries) {
        nEntries = chunk.length / ENTRY_SIZE;
        bool fits = nEntries != 0 && nEntries <= CHUNK_ENTRIES && chunk.length == nEntries * ENTRY_SIZE;
        if (!fits) revert ChunkSize(chunk.length);
    }

    /// @dev Checks the form of a chunk of `n` entries and computes its root.
    function _check(bytes calldata data, uint256 n) private pure returns (Chunk memory chunk) {
        bytes32[] memory leaves = new bytes32[](CHUNK_ENTRIES);
        // A contributor is never the zero address, so every key is above 0, and starting here refuses that address.
        uint256 previousKey = type(uint32).max;
        for (uint256 i = 0; i < n; ++i) {
            uint256 key;
            uint256 scale;
            uint256 zeros;
            assembly ("memory-safe") {
                let entry := add(data.offset, mul(i, ENTRY_SIZE))
                key := or(shl(32, shr(96, calldataload(entry))), shr(224, calldataload(add(entry, CLUSTER_AT))))
                scale := shr(240, calldataload(add(entry, SCALE_AT)))
                // Codes are halves of bytes, and -8 is 8. Flipping the high bits makes it the only zero half, and
                // (x - 0x11…) & ~x & 0x88… is not zero exactly if x has a zero half.
                let high := 0x8888888888888888888888888888888888888888888888888888888888888888
                let low := shr(3, high)
                let codes := add(entry, CODES_AT)
                for { let end := add(codes, 128) } lt(codes, end) { codes := add(codes, 0x20) } {
                    let x := xor(calldataload(codes), high)
                    zeros := or(zeros, and(and(sub(x, low), not(x)), high))
                }
                let preimage := mload(0x40)
                mstore8(preimage, 0)
                calldatacopy(add(preimage, 1), entry, ENTRY_SIZE)
                mstore(add(add(leaves, 0x20), shl(5, i)), keccak256(preimage, 187))
            }
            if (key <= previousKey) revert EntryOrder(i);
            if (scale == 0) revert EntryScale(i);
            if (zeros != 0) revert EntryCode(i);
            // forge-lint: disable-next-line(unsafe-typecast)
            if (i == 0) chunk.firstKey = uint192(key);
            previousKey = key;
        }
        // forge-lint: disable-next-line(unsafe-typecast)
        chunk.lastKey = uint192(previousKey);
        // forge-lint: disable-next-line(unsafe-typecast)
        chunk.nEntries = uint16(n);
        chunk.root = Merkle.root(leaves);
    }

    /// @dev Reads the clusters of all chunks into a hash set in memory: open addressing, at most half full, slots of
    /// eight bytes that hold `cluster + 1`. Clusters are dense numbers; multiplying by an odd constant and taking the
    /// high bits spreads them. About 150 gas an entry.
    function _requireDistinctClusters(address[] calldata chunks, uint256 nEntries) private view {
        uint256 bits = 1;
        while (2 ** bits < 2 * nEntries) ++bits;
        // A slot is read and written as the head of a 32-byte word: 24 bytes more keep the last one inside.
        bytes memory table = new bytes(8 * 2 ** bits + 24);
        bytes memory data = new bytes(CHUNK_ENTRIES * ENTRY_SIZE);
        uint256 left = nEntries;
        for (uint256 c = 0; c < chunks.length; ++c) {
            address chunk = chunks[c];
            uint256 n = left < CHUNK_ENTRIES ? left : CHUNK_ENTRIES;
            left -= n;
            bool duplicate = false;
            uint256 cluster;
            assembly ("memory-safe") {
                extcodecopy(chunk, add(data, 0x20), 1, mul(n, ENTRY_SIZE))
                let mask := sub(shl(bits, 1), 1)
                let at := add(data, add(0x20, CLUSTER_AT))
                for { let end := add(at, mul(n, ENTRY_SIZE)) } lt(at, end) { at := add(at, ENTRY_SIZE) } {
                    cluster := shr(224, mload(at))
                    let mark := add(cluster, 1)
                    let slot := shr(sub(32, bits), and(mul(cluster, 0x9e3779b1), 0xffffffff))
                    for {} 1 { slot := and(add(slot, 1), mask) } {
                        let pointer := add(add(table, 0x20), shl(3, slot))
                        let word := mload(pointer)
                        let found := shr(192, word)
                        if iszero(found) {
                            mstore(pointer, or(word, shl(192, mark)))
                            break
                        }
                        if eq(found, mark) {
                            duplicate := 1
                            break
                        }
                    }
                    if duplicate { break }
                }
            }
            // forge-lint: disable-next-line(unsafe-typecast)
            if (duplicate) revert DuplicateCluster(uint32(cluster));
        }
    }

    /// @dev Creation code of an account whose code is a zero byte, then `data`: ten bytes that return the rest.
    /// PUSH2 size, DUP1, PUSH1 10, RETURNDATASIZE (0), CODECOPY, RETURNDATASIZE, RETURN.
    function _initCode(bytes memory data) private pure returns (bytes memory) {
        // At most 23,808 bytes, by the checks of the callers.
        // forge-lint: disable-next-line(unsafe-typecast)
        return abi.encodePacked(hex"61", uint16(data.length + 1), hex"80600a3d393df300", data);
    }

    function _create2Address(bytes32 initCodeHash) private view returns (address) {
        return
            address(
                uint160(uint256(keccak256(abi.encodePacked(bytes1(0xff), address(this), bytes32(0), initCodeHash))))
            );
    }

    /// @dev Creates the account, or finds it: a list's bytes could equal those of a chunk. Either way the code at the
    /// address is the one asked for, because the address is a hash of it.
    function _deploy(bytes memory initCode) private returns (address account) {
        account = _create2Address(keccak256(initCode));
        if (account.code.length != 0) return account;
        address created;
        assembly ("memory-safe") {
            created := create2(0, add(initCode, 0x20), mload(initCode), 0)
        }
        if (created != account) revert DeployFailed();
    }
}
