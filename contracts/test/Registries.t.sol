// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {DATANET_REGISTRY, MODEL_REGISTRY} from "../src/l2/Addresses.sol";
import {DatanetRegistry} from "../src/l2/DatanetRegistry.sol";
import {ModelRegistry} from "../src/l2/ModelRegistry.sol";
import {NamedRegistry} from "../src/l2/NamedRegistry.sol";
import {Chain} from "./support/Chain.sol";

/// Goal: names are unique and owned, versions have no gaps, and a model names only what exists.
contract RegistriesTest is Chain {
    bytes32 private constant LEGAL = keccak256("legal");

    function setUp() public {
        genesis();
    }

    // --- datanets --------------------------------------------------------------------------------

    function create(string memory name) private returns (bytes32) {
        vm.prank(OWNER);
        return datanets.create(name, TREASURY);
    }

    function publish(address sender, uint64 version, uint64 nRecords, uint64 nContributors) private {
        vm.prank(sender);
        datanets.publish(LEGAL, version, keccak256("root"), keccak256("manifest"), nRecords, nContributors);
    }

    function test_createAndPublish() public {
        vm.expectEmit(true, true, false, true, DATANET_REGISTRY);
        emit DatanetRegistry.DatanetCreated(LEGAL, OWNER, "legal", TREASURY);
        equal(create("legal"), LEGAL, "id");
        equal(datanets.nameOf(LEGAL), "legal", "name");
        equal(datanets.count(), 1, "count");
        equal(datanets.idAt(0), LEGAL, "id at 0");

        vm.expectEmit(true, true, false, true, DATANET_REGISTRY);
        emit DatanetRegistry.VersionPublished(LEGAL, 1, keccak256("root"), keccak256("manifest"), 10, 3);
        publish(OWNER, 1, 10, 3);
        publish(OWNER, 2, 10, 3);
        (address owner, address treasury, uint64 version, DatanetRegistry.Version memory newest) =
            datanets.datanet(LEGAL);
        equal(owner, OWNER, "owner");
        equal(treasury, TREASURY, "treasury");
        equal(version, 2, "version");
        equal(newest.nRecords, 10, "records");
        equal(datanets.versionOf(LEGAL, 1).publishedAt, block.timestamp, "published");
    }

    function test_publishRefused() public {
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.UnknownId.selector, LEGAL));
        publish(OWNER, 1, 10, 3);

        create("legal");
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.NotOwner.selector, LEGAL, STRANGER));
        publish(STRANGER, 1, 10, 3);
        vm.expectRevert(abi.encodeWithSelector(DatanetRegistry.WrongVersion.selector, LEGAL, 1, 2));
        publish(OWNER, 2, 10, 3);
        vm.expectRevert(abi.encodeWithSelector(DatanetRegistry.InvalidCounts.selector, 2, 3));
        publish(OWNER, 1, 2, 3);
        vm.expectRevert(abi.encodeWithSelector(DatanetRegistry.InvalidCounts.selector, 0, 0));
        publish(OWNER, 1, 0, 0);
        publish(OWNER, 1, 10, 3);
        vm.expectRevert(abi.encodeWithSelector(DatanetRegistry.WrongVersion.selector, LEGAL, 2, 1));
        publish(OWNER, 1, 10, 3);
        vm.expectRevert(abi.encodeWithSelector(DatanetRegistry.InvalidCounts.selector, 9, 3));
        publish(OWNER, 2, 9, 3);
        vm.expectRevert(abi.encodeWithSelector(DatanetRegistry.InvalidCounts.selector, 11, 2));
        publish(OWNER, 2, 11, 2);

        vm.expectRevert(DatanetRegistry.EmptyVersion.selector);
        vm.prank(OWNER);
        datanets.publish(LEGAL, 2, 0, keccak256("manifest"), 11, 3);
        vm.expectRevert(DatanetRegistry.EmptyVersion.selector);
        vm.prank(OWNER);
        datanets.publish(LEGAL, 2, keccak256("root"), 0, 11, 3);
        vm.expectRevert(abi.encodeWithSelector(DatanetRegistry.WrongVersion.selector, LEGAL, 1, 2));
        datanets.versionOf(LEGAL, 2);
    }

    function test_names() public {
        string[4] memory good =
            ["a", "defi-exploits", "0-9", "abcdefghijklmnopqrstuvwxyz-0123456789-abcdefghijklmnopqrstuvwxyz"];
        for (uint256 i = 0; i < good.length; ++i) {
            equal(create(good[i]), keccak256(bytes(good[i])), good[i]);
        }
        equal(bytes(good[3]).length, 64, "longest name");
        string[5] memory bad = ["", "Legal", "a b", unicode"é", string.concat(good[3], "a")];
        for (uint256 i = 0; i < bad.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(NamedRegistry.InvalidName.selector, bad[i]));
            create(bad[i]);
        }
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.NameTaken.selector, "a"));
        create("a");
    }

    function test_ownershipMovesInTwoSteps() public {
        create("legal");
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.NotOwner.selector, LEGAL, STRANGER));
        vm.prank(STRANGER);
        datanets.offerOwnership(LEGAL, STRANGER);

        vm.prank(OWNER);
        datanets.offerOwnership(LEGAL, PAYER);
        equal(datanets.ownerOf(LEGAL), OWNER, "still the old owner");
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.NotPendingOwner.selector, LEGAL, STRANGER));
        vm.prank(STRANGER);
        datanets.acceptOwnership(LEGAL);
        vm.prank(PAYER);
        datanets.acceptOwnership(LEGAL);
        equal(datanets.ownerOf(LEGAL), PAYER, "new owner");
        equal(datanets.pendingOwnerOf(LEGAL), address(0), "offer used up");
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.NotOwner.selector, LEGAL, OWNER));
        publish(OWNER, 1, 10, 3);
    }

    function test_treasury() public {
        vm.expectRevert(DatanetRegistry.InvalidTreasury.selector);
        datanets.create("legal", address(0));
        create("legal");
        vm.expectRevert(DatanetRegistry.InvalidTreasury.selector);
        vm.prank(OWNER);
        datanets.setTreasury(LEGAL, address(0));
        vm.prank(OWNER);
        datanets.setTreasury(LEGAL, PAYER);
        (, address treasury,,) = datanets.datanet(LEGAL);
        equal(treasury, PAYER, "treasury");
    }

    // --- models ----------------------------------------------------------------------------------

    function register(ModelRegistry.Params memory params) private returns (bytes32) {
        vm.prank(OWNER);
        return models.register("legal-model", params);
    }

    function prepared() private returns (ModelRegistry.Params memory) {
        create("legal");
        return paramsFor(sealOne(chunkOf(1, 1, packed(1))));
    }

    function test_registerAndUpdate() public {
        ModelRegistry.Params memory params = prepared();
        bytes32 id = keccak256("legal-model");
        vm.expectEmit(true, true, false, true, MODEL_REGISTRY);
        emit ModelRegistry.ModelRegistered(id, OWNER, "legal-model");
        vm.expectEmit(true, true, false, true, MODEL_REGISTRY);
        emit ModelRegistry.VersionAdded(
            id, 1, params.baseHash, params.adapterHash, params.manifestHash, params.sketchRoot
        );
        equal(register(params), id, "id");

        ModelRegistry.Params memory next = paramsFor(params.sketchRoot);
        next.adapterHash = keccak256("second adapter");
        next.nullThreshold = 12;
        next.datanetIds = new bytes32[](2);
        next.datanetIds[0] = LEGAL;
        next.datanetIds[1] = create("health");
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.NotOwner.selector, id, STRANGER));
        vm.prank(STRANGER);
        models.update(id, next);
        vm.prank(OWNER);
        equal(models.update(id, next), 2, "version");

        (address owner, uint64 version, ModelRegistry.Params memory current) = models.current(id);
        equal(owner, OWNER, "owner");
        equal(version, 2, "version");
        equal(keccak256(abi.encode(current)), keccak256(abi.encode(next)), "current");
        equal(keccak256(abi.encode(models.versionOf(id, 1))), keccak256(abi.encode(params)), "first");
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.UnknownVersion.selector, id, 3));
        models.versionOf(id, 3);
    }

    function test_registerRefused() public {
        ModelRegistry.Params memory params = prepared();
        params.sketchRoot = keccak256("never sealed");
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.SketchNotSealed.selector, params.sketchRoot));
        register(params);

        params = paramsFor(sealOne(chunkOf(1, 1, packed(1))));
        params.adapterHash = 0;
        vm.expectRevert(ModelRegistry.EmptyHash.selector);
        register(params);
        params.adapterHash = keccak256("adapter");

        params.treasury = address(0);
        vm.expectRevert(ModelRegistry.InvalidTreasury.selector);
        register(params);
        params.treasury = TREASURY;

        params.splitBps = [uint16(1000), 2000, 2000, 4999];
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidSplit.selector, 9999));
        register(params);
        params.splitBps = [uint16(65535), 65535, 1, 1];
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidSplit.selector, 131072));
        register(params);
        params.splitBps = [uint16(0), 0, 0, 10000];

        params.priceOutPerKTokens = 1e27 + 1;
        vm.expectRevert(ModelRegistry.PriceTooHigh.selector);
        register(params);
        params.priceOutPerKTokens = 1e27;

        params.datanetIds[0] = keccak256("no such datanet");
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidDatanet.selector, params.datanetIds[0]));
        register(params);
        params.datanetIds = new bytes32[](0);
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidDatanetCount.selector, 0));
        register(params);
        params.datanetIds = new bytes32[](17);
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidDatanetCount.selector, 17));
        register(params);
        params.datanetIds = new bytes32[](2);
        params.datanetIds[0] = params.datanetIds[1] = LEGAL;
        vm.expectRevert(abi.encodeWithSelector(ModelRegistry.InvalidDatanet.selector, LEGAL));
        register(params);

        params.datanetIds = new bytes32[](1);
        params.datanetIds[0] = LEGAL;
        register(params);
        vm.expectRevert(abi.encodeWithSelector(NamedRegistry.NameTaken.selector, "legal-model"));
        register(params);
    }
}
