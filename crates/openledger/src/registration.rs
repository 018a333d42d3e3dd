//! Putting datanets, sketches and models on chain, once.

use alloy_primitives::{Address, B256, U256};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, ensure};
use ol_contracts::address::{ATTRIBUTION_COURT, DATANET_REGISTRY, MODEL_REGISTRY, SKETCH_STORE};
use ol_contracts::bindings::{AttributionCourt, DatanetRegistry, ModelRegistry, SketchStore};
use ol_contracts::court::commit_call;
use ol_contracts::sketch::chunk_address;
use ol_datanet::Datanets;
use ol_poa::court::CommittedIndex;
use ol_poa::{DEFAULT_SPLIT_BPS, Index};
use ol_types::{DEV_MNEMONIC_KEYS, WEI_PER_OPEN, name_id};

use crate::factory::Tier;
use crate::rpc::Rpc;

/// Prices of the demo models: half an OPEN for 1,000 prompt tokens, one and a
/// half for 1,000 answer tokens, a thousandth flat.
const PRICE_IN_PER_K_TOKENS_WEI: u128 = WEI_PER_OPEN / 2;
const PRICE_OUT_PER_K_TOKENS_WEI: u128 = WEI_PER_OPEN * 3 / 2;
const PLATFORM_FEE_WEI: u128 = WEI_PER_OPEN / 1_000;

/// Roles of the development accounts; see `specs/predeploys.md`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DevRole {
    /// May settle receipts.
    Operator = 1,
    /// Owns the demo datanets and models.
    Owner = 2,
    /// Pays for the questions of the development API key.
    Payer = 3,
}

/// The signer of a development account. PUBLIC KEYS, for the development chain only.
///
/// # Panics
/// Never: the keys are constants that parse.
pub(crate) fn dev_signer(role: DevRole) -> PrivateKeySigner {
    DEV_MNEMONIC_KEYS[role as usize]
        .parse()
        .expect("a well-known key parses")
}

/// Everything the registry needs to know of a model.
#[derive(Debug)]
pub(crate) struct ModelFacts<'a> {
    pub(crate) name: &'a str,
    pub(crate) datanet: &'a str,
    pub(crate) base_hash: B256,
    pub(crate) adapter_hash: B256,
    pub(crate) manifest_hash: B256,
    pub(crate) index: &'a Index,
    pub(crate) tier: Tier,
    /// What the model names its index by: a root, or the id of a commitment.
    pub(crate) sketch_root: B256,
    pub(crate) pots_bps: [u16; 3],
    /// What a net must be above to be paid.
    pub(crate) null_threshold: u64,
}

/// Registers a datanet and publishes the versions that the chain does not have.
///
/// # Errors
/// If somebody else owns the name, or the chain has another history for it.
pub(crate) fn publish_datanet(rpc: &Rpc, datanets: &Datanets, name: &str) -> anyhow::Result<()> {
    let owner = dev_signer(DevRole::Owner);
    let id = name_id(name);
    if !rpc.call(DATANET_REGISTRY, &DatanetRegistry::existsCall { id })? {
        let call = DatanetRegistry::createCall {
            name: name.to_owned(),
            treasury: owner.address(),
        };
        rpc.send(&owner, DATANET_REGISTRY, U256::ZERO, &call)?;
    }
    let on_chain = rpc.call(DATANET_REGISTRY, &DatanetRegistry::datanetCall { id })?;
    ensure!(
        on_chain.owner == owner.address(),
        "datanet {name} belongs to {} on chain",
        on_chain.owner
    );
    let Some(head) = datanets.head(name)? else {
        return Ok(());
    };
    let newest = datanets.manifest(head)?.version;
    if on_chain.version > 0 {
        let here = datanets.version(name, on_chain.version)?;
        let there = on_chain.newest.manifestHash;
        ensure!(
            here == there,
            "version {} of {name} is {there} on chain, here it is {here}",
            on_chain.version
        );
    }
    for version in on_chain.version + 1..=newest {
        let manifest_hash = datanets.version(name, version)?;
        let manifest = datanets.manifest(manifest_hash)?;
        let call = DatanetRegistry::publishCall {
            id,
            version,
            root: manifest.root,
            manifestHash: manifest_hash,
            nRecords: manifest.n_records,
            nContributors: manifest.n_contributors,
        };
        rpc.send(&owner, DATANET_REGISTRY, U256::ZERO, &call)?;
    }
    Ok(())
}

/// Writes and seals a model's sketches, or commits to them, and registers the model or its new
/// version. Does nothing where the chain has it all.
///
/// # Errors
/// If somebody else owns the name, or the node refuses a transaction.
pub(crate) fn register_model(rpc: &Rpc, facts: &ModelFacts<'_>) -> anyhow::Result<()> {
    let owner = dev_signer(DevRole::Owner);
    let id = name_id(facts.name);
    let sketch_root = facts.sketch_root;
    let is_known = rpc.call(MODEL_REGISTRY, &ModelRegistry::existsCall { id })?;
    if is_known {
        let current = rpc.call(MODEL_REGISTRY, &ModelRegistry::currentCall { id })?;
        ensure!(
            current.owner == owner.address(),
            "model {} belongs to {} on chain",
            facts.name,
            current.owner
        );
        let params = &current.params;
        let is_current = params.baseHash == facts.base_hash
            && params.adapterHash == facts.adapter_hash
            && params.manifestHash == facts.manifest_hash
            && params.sketchRoot == sketch_root
            && params.potsBps == facts.pots_bps
            && params.nullThreshold == facts.null_threshold;
        if is_current {
            return Ok(());
        }
    }
    match facts.tier {
        Tier::Exact => seal_index(rpc, &owner, facts.index),
        Tier::Optimistic => commit_index(rpc, &owner, facts),
    }
    .with_context(|| format!("could not put the sketches of {} on chain", facts.name))?;
    let params = ModelRegistry::Params {
        baseHash: facts.base_hash,
        adapterHash: facts.adapter_hash,
        manifestHash: facts.manifest_hash,
        sketchRoot: sketch_root,
        datanetIds: vec![name_id(facts.datanet)],
        treasury: owner.address(),
        nullThreshold: facts.null_threshold,
        priceInPerKTokens: PRICE_IN_PER_K_TOKENS_WEI,
        priceOutPerKTokens: PRICE_OUT_PER_K_TOKENS_WEI,
        platformFee: PLATFORM_FEE_WEI,
        splitBps: DEFAULT_SPLIT_BPS,
        potsBps: facts.pots_bps,
    };
    if is_known {
        rpc.send(
            &owner,
            MODEL_REGISTRY,
            U256::ZERO,
            &ModelRegistry::updateCall { id, params },
        )?;
    } else {
        let call = ModelRegistry::registerCall {
            name: facts.name.to_owned(),
            params,
        };
        rpc.send(&owner, MODEL_REGISTRY, U256::ZERO, &call)?;
    }
    Ok(())
}

/// Commits to an index that is published as an object.
fn commit_index(rpc: &Rpc, owner: &PrivateKeySigner, facts: &ModelFacts<'_>) -> anyhow::Result<()> {
    let is_committed = AttributionCourt::isCommittedCall {
        id: facts.sketch_root,
    };
    if rpc.call(ATTRIBUTION_COURT, &is_committed)? {
        return Ok(());
    }
    let call = commit_call(&CommittedIndex::new(facts.index.clone())?);
    rpc.send(owner, ATTRIBUTION_COURT, U256::ZERO, &call)?;
    Ok(())
}

fn seal_index(rpc: &Rpc, owner: &PrivateKeySigner, index: &Index) -> anyhow::Result<()> {
    if rpc.call(
        SKETCH_STORE,
        &SketchStore::isSealedCall { root: index.root() },
    )? {
        return Ok(());
    }
    let mut chunks: Vec<Address> = Vec::new();
    for chunk in index.chunks() {
        let account = chunk_address(chunk).context("a chunk is too long")?;
        // Left by a registration that was interrupted.
        if rpc.code(account)?.is_empty() {
            let call = SketchStore::writeCall {
                chunk: chunk.to_vec().into(),
            };
            rpc.send(owner, SKETCH_STORE, U256::ZERO, &call)?;
        }
        chunks.push(account);
    }
    rpc.send(
        owner,
        SKETCH_STORE,
        U256::ZERO,
        &SketchStore::sealCall { chunks },
    )?;
    Ok(())
}
