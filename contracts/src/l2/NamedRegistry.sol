// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Named things with an owner
/// @notice A thing's id is the hash of its name. Names are never freed.
/// @dev Storage: slot 0 entries by id, slot 1 the ids in order of creation.
abstract contract NamedRegistry {
    struct Entry {
        address owner;
        address pendingOwner;
        string name;
    }

    /// @notice A name is 1 to 64 characters of a-z, 0-9 and '-'.
    error InvalidName(string name);
    /// @notice Somebody registered this name before.
    error NameTaken(string name);
    /// @notice There is nothing with this id.
    error UnknownId(bytes32 id);
    /// @notice Only the owner may do this.
    error NotOwner(bytes32 id, address caller);
    /// @notice Only the account that the owner offered it to may accept.
    error NotPendingOwner(bytes32 id, address caller);

    event OwnershipOffered(bytes32 indexed id, address indexed from, address indexed to);
    event OwnershipTransferred(bytes32 indexed id, address indexed from, address indexed to);

    uint256 private constant NAME_LENGTH_MAX = 64;

    mapping(bytes32 id => Entry) private _entries;
    bytes32[] private _ids;

    modifier onlyOwner(bytes32 id) {
        address owner = ownerOf(id);
        if (msg.sender != owner) revert NotOwner(id, msg.sender);
        _;
    }

    /// @notice The owner of `id`; reverts if there is no such thing.
    function ownerOf(bytes32 id) public view returns (address owner) {
        owner = _entries[id].owner;
        if (owner == address(0)) revert UnknownId(id);
    }

    /// @notice Whether something has this id.
    function exists(bytes32 id) public view returns (bool) {
        return _entries[id].owner != address(0);
    }

    /// @notice Whom the owner offered `id` to; zero if nobody.
    function pendingOwnerOf(bytes32 id) external view returns (address) {
        return _entries[id].pendingOwner;
    }

    /// @notice The name of `id`; empty if there is no such thing.
    function nameOf(bytes32 id) external view returns (string memory) {
        return _entries[id].name;
    }

    /// @notice How many things are registered.
    function count() external view returns (uint256) {
        return _ids.length;
    }

    /// @notice The id of the thing registered as number `index`, from 0.
    function idAt(uint256 index) external view returns (bytes32) {
        return _ids[index];
    }

    /// @notice Offers `id` to `to`, who must accept; zero takes an offer back.
    function offerOwnership(bytes32 id, address to) external onlyOwner(id) {
        _entries[id].pendingOwner = to;
        emit OwnershipOffered(id, msg.sender, to);
    }

    /// @notice Takes over `id`, offered to the caller.
    function acceptOwnership(bytes32 id) external {
        Entry storage entry = _entries[id];
        if (entry.pendingOwner != msg.sender) revert NotPendingOwner(id, msg.sender);
        address from = entry.owner;
        entry.owner = msg.sender;
        entry.pendingOwner = address(0);
        emit OwnershipTransferred(id, from, msg.sender);
    }

    function _register(string calldata name) internal returns (bytes32 id) {
        bytes calldata characters = bytes(name);
        if (characters.length == 0 || characters.length > NAME_LENGTH_MAX) revert InvalidName(name);
        for (uint256 i = 0; i < characters.length; ++i) {
            bytes1 c = characters[i];
            bool allowed = (c >= "a" && c <= "z") || (c >= "0" && c <= "9") || c == "-";
            if (!allowed) revert InvalidName(name);
        }
        id = keccak256(characters);
        if (exists(id)) revert NameTaken(name);
        _entries[id] = Entry({owner: msg.sender, pendingOwner: address(0), name: name});
        _ids.push(id);
    }
}
