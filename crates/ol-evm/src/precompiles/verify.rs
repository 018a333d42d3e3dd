//! `POA_VERIFY`: one step of a claim, judged.

use alloy_evm::precompiles::PrecompileInput;
use alloy_primitives::{B256, Bytes};
use alloy_sol_types::{SolCall, SolInterface};
use ol_poa::court::{self, Cutoff, StepError, Terms, Tree};

use super::abi::IPoaVerify::{IPoaVerifyCalls, isLieCall, openCall, revealCall};
use super::abi::Terms as TermsAbi;
use super::{
    Failure, Meter, VERIFY_BASE_GAS, VERIFY_BYTE_GAS, VERIFY_SIZE_BYTES_MAX, check_plain_call,
    decode,
};

pub(super) fn run(input: &mut PrecompileInput<'_>, meter: &mut Meter) -> Result<Bytes, Failure> {
    meter.charge(VERIFY_BASE_GAS)?;
    check_plain_call(input)?;
    if input.data.len() > VERIFY_SIZE_BYTES_MAX {
        return Err(Failure::refused("poa verify: the call is too long"));
    }
    meter.charge_each(VERIFY_BYTE_GAS, input.data.len())?;
    let call: IPoaVerifyCalls = decode(input.data)?;
    if call.abi_encoded_size() + 4 != input.data.len() {
        return Err(Failure::refused("precompile: malformed call"));
    }
    match call {
        IPoaVerifyCalls::isLie(call) => {
            let is_lie = court::is_lie(&terms(&call.terms), &call.step).map_err(refusal)?;
            Ok(isLieCall::abi_encode_returns(&is_lie).into())
        }
        IPoaVerifyCalls::open(call) => {
            let tree = tree(call.tree)?;
            let (level, position) = (call.level, call.position);
            let node = court::open(&terms(&call.terms), tree, level, position, &call.path)
                .map_err(refusal)?;
            Ok(openCall::abi_encode_returns(&node).into())
        }
        IPoaVerifyCalls::reveal(call) => {
            let node: B256 =
                court::reveal(tree(call.tree)?, call.level, &call.row).map_err(refusal)?;
            Ok(revealCall::abi_encode_returns(&node).into())
        }
    }
}

fn terms(terms: &TermsAbi) -> Terms {
    Terms {
        index_root: terms.indexRoot,
        n_entries: terms.nEntries,
        ranges_root: terms.rangesRoot,
        n_contributors: terms.nContributors,
        query_hash: terms.queryHash,
        null_threshold: terms.nullThreshold,
        pot: terms.pot,
        roots: terms.roots,
        cutoff: Cutoff {
            remainder: terms.cutoffRemainder,
            position: terms.cutoffPosition,
        },
    }
}

fn tree(number: u8) -> Result<Tree, Failure> {
    Tree::from_number(number).ok_or_else(|| refusal(StepError::Malformed))
}

fn refusal(error: StepError) -> Failure {
    Failure::Refused(format!("poa verify: {error}"))
}
