//! What a settling transaction did, read from its logs.

use alloy_primitives::{Address, B256, Log, U256};
use alloy_sol_types::SolEvent;
use ol_poa::Pot;

use crate::address::INFERENCE_SETTLEMENT;
use crate::bindings::InferenceSettlement::{Credited, Settled, TreasuryCredited};

/// One settled receipt: the fee, its parts, and who got the contributors'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Id of the receipt.
    pub receipt_id: B256,
    /// Id of the model that answered.
    pub model_id: B256,
    /// Whose prepaid balance was charged.
    pub payer: Address,
    /// What was charged, in wei: the sum of the three parts and the three pots.
    pub fee_wei: u128,
    /// The platform's part, in wei.
    pub platform_wei: u128,
    /// The model owner's part, in wei.
    pub model_wei: u128,
    /// The stakers' part, in wei.
    pub stakers_wei: u128,
    /// The contributors' part: training, spans and context, by [`Pot`]'s numbers.
    pub pots: [PotCredits; 3],
    /// Who got the pot for training instead, if nobody's data moved the answer.
    pub treasury: Option<Address>,
}

/// One pot of the contributors' part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PotCredits {
    /// The pot, in wei: the sum of the credits, or what the treasury got.
    pub amount_wei: u128,
    /// Who got what, ascending by address.
    pub credits: Vec<Credit>,
}

/// A contributor's part of one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credit {
    /// Whom.
    pub contributor: Address,
    /// By what the pot is shared: a net score above the null threshold, units of
    /// spans, or what the answer would lose without a passage.
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
    /// The contributors' part, in wei: all three pots.
    #[must_use]
    pub fn contributors_wei(&self) -> u128 {
        // They and three other parts add up to the fee.
        self.pots.iter().map(|pot| pot.amount_wei).sum()
    }

    /// Reads every settled receipt from the logs of a transaction, in order.
    /// Logs of other contracts and other events are passed over.
    ///
    /// # Errors
    /// [`LogError`] if the events are malformed, out of order, or their amounts
    /// do not add up: each returned settlement's parts and pots sum to its fee,
    /// and the credits of a pot to the pot.
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
                    let training = &settlement.pots[Pot::Training as usize];
                    if U256::from(training.amount_wei) != event.amount {
                        return Err(settlement.amounts());
                    }
                    settlement.treasury = Some(event.treasury);
                }
                Some(&Credited::SIGNATURE_HASH) => {
                    let event = decode::<Credited>(index, "Credited", log)?;
                    let mut settlement = open
                        .take()
                        .filter(|settlement| settlement.receipt_id == event.receiptId)
                        .ok_or(LogError::Order { index })?;
                    let pot = Pot::from_number(event.pot).ok_or(LogError::Order { index })?;
                    // Each once, the one that is always there at the end.
                    if !settlement.pots[pot as usize].credits.is_empty() {
                        return Err(LogError::Order { index });
                    }
                    settlement.pots[pot as usize].credits = settlement.credits(&event)?;
                    if pot == Pot::Training {
                        finished.push(settlement.finish()?);
                    } else {
                        open = Some(settlement);
                    }
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
        let pot = |amount: U256| {
            wei(amount).map(|amount_wei| PotCredits {
                amount_wei,
                credits: Vec::new(),
            })
        };
        let settlement = Self {
            receipt_id: event.receiptId,
            model_id: event.modelId,
            payer: event.payer,
            fee_wei: wei(event.fee)?,
            platform_wei: wei(event.platform)?,
            model_wei: wei(event.model)?,
            stakers_wei: wei(event.stakers)?,
            pots: [pot(event.training)?, pot(event.spans)?, pot(event.context)?],
            treasury: None,
        };
        let pots = settlement.pots.iter().map(|pot| pot.amount_wei);
        let parts = [
            settlement.platform_wei,
            settlement.model_wei,
            settlement.stakers_wei,
        ];
        if checked_sum(pots.chain(parts)) == Some(settlement.fee_wei) {
            Ok(settlement)
        } else {
            Err(broken)
        }
    }

    fn credits(&self, event: &Credited) -> Result<Vec<Credit>, LogError> {
        let n = event.contributors.len();
        if event.weights.len() != n || event.amounts.len() != n {
            return Err(self.amounts());
        }
        let amounts = event.contributors.iter().zip(&event.weights);
        let credit = |((&contributor, &weight), &amount): ((&Address, &u64), &U256)| {
            Ok(Credit {
                contributor,
                weight,
                amount_wei: u128::try_from(amount).map_err(|_| self.amounts())?,
            })
        };
        amounts.zip(&event.amounts).map(credit).collect()
    }

    fn finish(self) -> Result<Self, LogError> {
        for pot in Pot::ALL {
            let PotCredits {
                amount_wei,
                credits,
            } = &self.pots[pot as usize];
            // Either contributors or the treasury, never both, never neither.
            let is_treasury = pot == Pot::Training && self.treasury.is_some();
            let credited = checked_sum(credits.iter().map(|credit| credit.amount_wei));
            let expected = if is_treasury { 0 } else { *amount_wei };
            let is_known = pot != Pot::Training || credits.is_empty() == is_treasury;
            if credited != Some(expected) || !is_known {
                return Err(self.amounts());
            }
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
