//! Money set aside for requests that are running.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ol_types::{Address, WEI_PER_OPEN};

/// What running requests may cost, per account.
///
/// The balance itself is on chain. A request starts only if the balance covers
/// its largest possible fee beside those of all others, so that parallel
/// requests cannot spend the same OPEN twice. A hold ends after its fee was
/// taken on chain: in between the two overlap, and a request may be refused
/// that would just have fitted, never the other way round.
#[derive(Debug, Default)]
pub(super) struct Holds {
    by_account: Mutex<BTreeMap<Address, u128>>,
}

/// Money set aside; dropping it sets it free.
#[derive(Debug)]
pub(super) struct Hold {
    holds: Arc<Holds>,
    account: Address,
    amount_wei: u128,
}

/// Why nothing was set aside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HoldError<E> {
    /// The balance does not cover it.
    #[error("{amount_wei} wei are needed, {available_wei} wei are available")]
    Insufficient {
        /// What was to be set aside.
        amount_wei: u128,
        /// Balance less what other requests hold.
        available_wei: u128,
    },
    /// The balance could not be read.
    #[error("the balance could not be read")]
    Balance(#[source] E),
}

impl Holds {
    /// Sets `amount_wei` aside if the account's balance covers it beside the
    /// other holds. `balance_wei` is read under the lock.
    ///
    /// # Errors
    /// [`HoldError`]; nothing is set aside then.
    pub(super) fn place<E>(
        self: &Arc<Self>,
        account: Address,
        amount_wei: u128,
        balance_wei: impl FnOnce() -> Result<u128, E>,
    ) -> Result<Hold, HoldError<E>> {
        let mut by_account = self.lock();
        let held_wei = by_account.get(&account).copied().unwrap_or(0);
        let balance_wei = balance_wei().map_err(HoldError::Balance)?;
        let available_wei = balance_wei.saturating_sub(held_wei);
        // A balance of nothing pays for nothing, be the model free.
        if amount_wei > available_wei || balance_wei == 0 {
            return Err(HoldError::Insufficient {
                amount_wei,
                available_wei,
            });
        }
        by_account.insert(account, held_wei + amount_wei);
        drop(by_account);
        Ok(Hold {
            holds: Arc::clone(self),
            account,
            amount_wei,
        })
    }

    /// Sets `amount_wei` aside whatever the balance: for a fee already owed.
    pub(super) fn adopt(self: &Arc<Self>, account: Address, amount_wei: u128) -> Hold {
        let mut by_account = self.lock();
        let held_wei = by_account.entry(account).or_insert(0);
        let amount_wei = amount_wei.min(u128::MAX - *held_wei);
        *held_wei += amount_wei;
        drop(by_account);
        Hold {
            holds: Arc::clone(self),
            account,
            amount_wei,
        }
    }

    /// What is set aside for an account, in wei.
    #[cfg(test)]
    pub(super) fn held_wei(&self, account: Address) -> u128 {
        self.lock().get(&account).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Address, u128>> {
        self.by_account
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, account: Address, amount_wei: u128) {
        let mut by_account = self.lock();
        if let Some(held_wei) = by_account.get_mut(&account) {
            *held_wei = held_wei.saturating_sub(amount_wei);
            if *held_wei == 0 {
                by_account.remove(&account);
            }
        }
    }
}

impl Hold {
    /// What is set aside.
    pub(super) const fn amount_wei(&self) -> u128 {
        self.amount_wei
    }

    /// Frees what is above `amount_wei`.
    pub(super) fn shrink_to(&mut self, amount_wei: u128) {
        let freed_wei = self.amount_wei.saturating_sub(amount_wei);
        self.holds.release(self.account, freed_wei);
        self.amount_wei -= freed_wei;
    }
}

/// What a request keeps from being promised twice: the payer's money, and for
/// the optimistic tier the operator's bond.
#[derive(Debug)]
pub(super) struct Reserve {
    /// The fee.
    pub(super) fee: Hold,
    /// What a claim of it takes.
    pub(super) bond: Option<Box<Hold>>,
}

impl Reserve {
    /// Frees what is above a fee of `fee_wei`.
    pub(super) fn shrink_to(&mut self, fee_wei: u128) {
        self.fee.shrink_to(fee_wei);
        if let Some(bond) = &mut self.bond {
            bond.shrink_to(bond_of_wei(fee_wei));
        }
    }
}

/// What a claim takes of its operator's bond beside the fee, in wei:
/// `AttributionCourt.CLAIM_BOND`.
const CLAIM_BOND_WEI: u128 = WEI_PER_OPEN / 10;

/// What a claim of this fee takes of its operator's bond, in wei.
pub(super) const fn bond_of_wei(fee_wei: u128) -> u128 {
    CLAIM_BOND_WEI.saturating_add(fee_wei)
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.release(self.account, self.amount_wei);
    }
}

#[cfg(test)]
mod tests;
