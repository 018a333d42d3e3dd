//! One claim of the optimistic tier: judged, and challenged.

use alloy_primitives::{B256, U256};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, bail};
use ol_contracts::address::{ATTRIBUTION_COURT, MODEL_REGISTRY};
use ol_contracts::bindings::AttributionCourt::{self, Claimed, Revealed};
use ol_contracts::bindings::ModelRegistry;
use ol_contracts::court::ClaimStatus;
use ol_poa::court::{CommittedIndex, Finding, find_malformed};
use ol_runtime::ObjectsError;
use ol_server::optimistic::{CLAIM_SIZE_BYTES_MAX, INDEX_SIZE_BYTES_MAX};
use ol_server::verify::{ClaimEvidence, event, judge};

use super::Verdict;
use crate::chain::Chain;
use crate::command::claims::{committed, read_index};

/// The claims of one chain. The index used last is kept: most claims in a row
/// are about the same one.
#[derive(Debug, Default)]
pub(super) struct Claims {
    index: Option<(B256, CommittedIndex)>,
}

impl Claims {
    /// Judges a claim and, with a key, does what is due.
    ///
    /// # Errors
    /// If the chain or an object cannot be read, or a transaction fails.
    pub(super) fn judge(
        &mut self,
        chain: &Chain,
        key: Option<&PrivateKeySigner>,
        id: B256,
    ) -> anyhow::Result<Verdict> {
        let rpc = chain.rpc();
        let claim = rpc.call(ATTRIBUTION_COURT, &AttributionCourt::claimOfCall { id })?;
        match ClaimStatus::of(claim.status) {
            Some(ClaimStatus::Pending) => {}
            Some(ClaimStatus::Paid) => return Ok(Verdict::Over("paid")),
            Some(ClaimStatus::Refuted) => {
                // What it takes to be paid is done at once, by whoever sees it first.
                if let Some(key) = key {
                    close(chain, key, id)?;
                }
                return Ok(Verdict::Over("refuted"));
            }
            _ => return Ok(Verdict::Over("refuted, and its fee given back")),
        }
        let logs = rpc.logs(ATTRIBUTION_COURT, id)?;
        let claimed = logs
            .iter()
            .find_map(|found| event::<Claimed>(&found.log))
            .context("the court has no event of the claim")?;
        let revealed: Vec<Revealed> = logs.iter().filter_map(|found| event(&found.log)).collect();
        let params = rpc.call(
            MODEL_REGISTRY,
            &ModelRegistry::versionOfCall {
                id: claimed.modelId,
                version: claimed.version,
            },
        )?;
        let data = match chain.objects()?.get(claimed.data, CLAIM_SIZE_BYTES_MAX) {
            Ok(data) => Some(data),
            // Withheld numbers are revealed on chain.
            Err(ObjectsError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let index = match self.index(chain, claim.indexId) {
            Ok(index) => index,
            // Who claims against an index that is none answers for it.
            Err(error) => match malformed(chain, claim.indexId)? {
                Some(step) => return challenge(chain, key, id, step),
                None => return Err(error),
            },
        };
        let evidence = ClaimEvidence {
            index,
            index_id: claim.indexId,
            null_threshold: params.nullThreshold,
            claimed: &claimed,
            data: data.as_deref(),
            revealed: &revealed,
        };
        match judge(&evidence)? {
            Finding::Honest => Ok(Verdict::Right),
            Finding::Lie(step) => challenge(chain, key, id, step),
            Finding::Hidden {
                tree,
                level,
                position,
                path,
            } => {
                let place = format!("tree {}, level {level}, position {position}", tree as u8);
                let Some(key) = key else {
                    return Ok(Verdict::Lie(format!(
                        "hidden below {place}; not challenged"
                    )));
                };
                let request = AttributionCourt::requestRevealCall {
                    id,
                    tree: tree as u8,
                    level: level.try_into().context("a level fits a byte")?,
                    position,
                    path: path.into(),
                };
                reveal(chain, key, id, &request, &place)
            }
        }
    }

    /// The index with this id on chain, from the objects.
    fn index(&mut self, chain: &Chain, id: B256) -> anyhow::Result<&CommittedIndex> {
        if self.index.as_ref().is_none_or(|(found, _)| *found != id) {
            let index = read_index(chain, id)?;
            self.index = Some((id, index));
        }
        match &self.index {
            Some((_, index)) => Ok(index),
            None => bail!("the index was read and is not there"),
        }
    }
}

/// The step that shows an index to be none, if its object is at hand.
fn malformed(chain: &Chain, index_id: B256) -> anyhow::Result<Option<Vec<u8>>> {
    let committed = committed(chain, index_id)?;
    let object = match chain.objects()?.get(committed.object, INDEX_SIZE_BYTES_MAX) {
        Ok(object) => object,
        Err(ObjectsError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(find_malformed(&object, &committed.root, committed.nEntries))
}

/// Refutes a claim by a step, or says that it would.
fn challenge(
    chain: &Chain,
    key: Option<&PrivateKeySigner>,
    id: B256,
    step: Vec<u8>,
) -> anyhow::Result<Verdict> {
    let Some(key) = key else {
        return Ok(Verdict::Lie(
            "not challenged: no key, or a dry run".to_owned(),
        ));
    };
    let rpc = chain.rpc();
    let stake = rpc.call(ATTRIBUTION_COURT, &AttributionCourt::CHALLENGE_BONDCall {})?;
    let step = step.into();
    let call = AttributionCourt::challengeCall { id, step };
    rpc.send(key, ATTRIBUTION_COURT, stake, &call)?;
    close(chain, key, id)?;
    Ok(Verdict::Lie("challenged and refuted".to_owned()))
}

/// Asks the operator to reveal, or ends it when it has not in time.
fn reveal(
    chain: &Chain,
    key: &PrivateKeySigner,
    id: B256,
    request: &AttributionCourt::requestRevealCall,
    place: &str,
) -> anyhow::Result<Verdict> {
    let rpc = chain.rpc();
    let challenger = key.address();
    let open = rpc.call(
        ATTRIBUTION_COURT,
        &AttributionCourt::revealOfCall { id, challenger },
    )?;
    if !open.isOpen {
        let stake = rpc.call(ATTRIBUTION_COURT, &AttributionCourt::REVEAL_BONDCall {})?;
        rpc.send(key, ATTRIBUTION_COURT, stake, request)?;
        return Ok(Verdict::Waiting(format!("asked to reveal {place}")));
    }
    if rpc.block_time_s()? <= open.deadline {
        return Ok(Verdict::Waiting(format!("still to reveal {place}")));
    }
    let expire = AttributionCourt::expireRevealCall { id, challenger };
    rpc.send(key, ATTRIBUTION_COURT, U256::ZERO, &expire)?;
    close(chain, key, id)?;
    Ok(Verdict::Lie(format!(
        "refuted: {place} was not revealed in time"
    )))
}

fn close(chain: &Chain, key: &PrivateKeySigner, id: B256) -> anyhow::Result<()> {
    let call = AttributionCourt::closeCall { id };
    chain
        .rpc()
        .send(key, ATTRIBUTION_COURT, U256::ZERO, &call)?;
    Ok(())
}
