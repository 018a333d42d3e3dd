//! What a settling transaction did, read from its logs.

use alloy_primitives::{Address, B256, Log, U256};
use alloy_sol_types::SolEvent;

use crate::address::INFERENCE_SETTLEMENT;
use crate::bindings::InferenceSettlement::{Credited, Settled, TreasuryCredited};

/// One settled receipt: the fee, its four parts, and who got the contributors'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Id of the receipt.
    pub receipt_id: B256,
    /// Id of the model that answered.
    pub model_id: B256,
    /// Whose prepaid balance was charged.
    pub payer: Address,
    /// What was charged, in wei: the sum of the four parts.
    pub fee_wei: u128,
    /// The platform's part, in wei.
    pub platform_wei: u128,
    /// The model owner's part, in wei.
    pub model_wei: u128,
    /// The stakers' part, in wei.
    pub stakers_wei: u128,
    /// The contributors' part, in wei.
    pub contributors_wei: u128,
    /// Who of the contributors got what, ascending by address. Empty if
    /// nobody's data moved the answer.
    pub credits: Vec<Credit>,
    /// Who got the contributors' part instead, if nobody's data did.
    pub treasury: Option<Address>,
}

/// A contributor's part of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credit {
    /// Whom.
    pub contributor: Address,
    /// Net score above the null threshold.
    pub weight: u64,
    /// How much, in wei.
    pub amount_wei: u128,
}

/// Why logs are not those of settled receipts. Whoever sees one of these talks
/// to a chain with other contracts, or to a node that lies.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A log has the topic of an event and not its form.
    #[error("log {index} is no {event} event")]
    Form {
        /// Position in the logs given.
        index: usize,
        /// Name of the event.
        event: &'static str,
        /// What the decoder says.
        #[source]
        source: alloy_sol_types::Error,
    },
    /// The events of a receipt do not follow each other as the contract emits them.
    #[error("log {index} does not belong to the receipt settled before it")]
    Order {
        /// Position in the logs given.
        index: usize,
    },
    /// The events of a receipt end before the contributors are named.
    #[error("the logs end before the credits of receipt {receipt_id}")]
    Unfinished {
        /// The receipt.
        receipt_id: B256,
    },
    /// Parts do not add up, or the lists of a credit differ in length.
    #[error("the amounts of receipt {receipt_id} do not add up")]
    Amounts {
        /// The receipt.
        receipt_id: B256,
    },
}

impl Settlement {
    /// Reads every settled receipt from the logs of a transaction, in order.
    /// Logs of other contracts and other events are passed over.
    ///
    /// # Errors
    /// [`LogError`] if the events are malformed, out of order, or their amounts
    /// do not add up: each returned settlement's parts sum to its fee, and its
    /// credits to the contributors' part.
    pub fn from_logs<'a>(logs: impl IntoIterator<Item = &'a Log>) -> Result<Vec<Self>, LogError> {
        let mut finished = Vec::new();
        let mut open: Option<Self> = None;
        for (index, log) in logs.into_iter().enumerate() {
            if log.address != INFERENCE_SETTLEMENT {
                continue;
            }
            match log.topics().first() {
                Some(&Settled::SIGNATURE_HASH) => {
                    if open.is_some() {
                        return Err(LogError::Order { index });
                    }
                    open = Some(Self::begin(&decode::<Settled>(index, "Settled", log)?)?);
                }
                Some(&TreasuryCredited::SIGNATURE_HASH) => {
                    let event = decode::<TreasuryCredited>(index, "TreasuryCredited", log)?;
                    let settlement = open
                        .as_mut()
                        .filter(|settlement| {
                            settlement.receipt_id == event.receiptId
                                && settlement.treasury.is_none()
                        })
                        .ok_or(LogError::Order { index })?;
                    if U256::from(settlement.contributors_wei) != event.amount {
                        return Err(settlement.amounts());
                    }
                    settlement.treasury = Some(event.treasury);
                }
                Some(&Credited::SIGNATURE_HASH) => {
                    let event = decode::<Credited>(index, "Credited", log)?;
                    let settlement = open
                        .take()
                        .filter(|settlement| settlement.receipt_id == event.receiptId)
                        .ok_or(LogError::Order { index })?;
                    finished.push(settlement.finish(&event)?);
                }
                _ => {}
            }
        }
        match open {
            Some(Self { receipt_id, .. }) => Err(LogError::Unfinished { receipt_id }),
            None => Ok(finished),
        }
    }

    fn begin(event: &Settled) -> Result<Self, LogError> {
        let broken = LogError::Amounts {
            receipt_id: event.receiptId,
        };
        let wei = |amount: U256| u128::try_from(amount).map_err(|_| broken.clone());
        let settlement = Self {
            receipt_id: event.receiptId,
            model_id: event.modelId,
            payer: event.payer,
            fee_wei: wei(event.fee)?,
            platform_wei: wei(event.platform)?,
            model_wei: wei(event.model)?,
            stakers_wei: wei(event.stakers)?,
            contributors_wei: wei(event.contributors)?,
            credits: Vec::new(),
            treasury: None,
        };
        let parts = [
            settlement.platform_wei,
            settlement.model_wei,
            settlement.stakers_wei,
            settlement.contributors_wei,
        ];
        if checked_sum(parts) == Some(settlement.fee_wei) {
            Ok(settlement)
        } else {
            Err(broken)
        }
    }

    fn finish(mut self, event: &Credited) -> Result<Self, LogError> {
        let n = event.contributors.len();
        if event.weights.len() != n || event.amounts.len() != n {
            return Err(self.amounts());
        }
        for ((&contributor, &weight), &amount) in event
            .contributors
            .iter()
            .zip(&event.weights)
            .zip(&event.amounts)
        {
            let amount_wei = u128::try_from(amount).map_err(|_| self.amounts())?;
            self.credits.push(Credit {
                contributor,
                weight,
                amount_wei,
            });
        }
        let credited = checked_sum(self.credits.iter().map(|credit| credit.amount_wei));
        let expected = if self.treasury.is_some() {
            0
        } else {
            self.contributors_wei
        };
        // Either contributors or the treasury, never both, never neither.
        if credited != Some(expected) || self.credits.is_empty() != self.treasury.is_some() {
            return Err(self.amounts());
        }
        Ok(self)
    }

    const fn amounts(&self) -> LogError {
        LogError::Amounts {
            receipt_id: self.receipt_id,
        }
    }
}

fn decode<E: SolEvent>(index: usize, event: &'static str, log: &Log) -> Result<E, LogError> {
    E::decode_log_data(&log.data).map_err(|source| LogError::Form {
        index,
        event,
        source,
    })
}

fn checked_sum(amounts: impl IntoIterator<Item = u128>) -> Option<u128> {
    amounts.into_iter().try_fold(0, u128::checked_add)
}

#[cfg(test)]
mod tests;
