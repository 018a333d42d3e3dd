//! The state as it was: reading it, going back to it, forgetting it.

use std::collections::btree_map::Entry;

use alloy_primitives::{Address, B256, Bytes, U256};
use ol_evm::{AccountChange, AccountState, StateDiff, StateReader};
use signet_libmdbx::{Database, Ro, Rw, TransactionKind};

use super::codec::{ChangedKeys, decode_account, decode_value, storage_key};
use super::{StateUpdate, StoreError, StoredBlock, Txn, array};

/// Most blocks whose history one block forgets, so that a depth that was
/// lowered does not make one block slow.
const PRUNE_MAX_BLOCKS: usize = 16;

/// Most changed keys that are taken back at one time.
const UNWIND_KEYS_MAX: usize = 1_000_000;

impl<K: TransactionKind> Txn<K> {
    /// The oldest block whose state is kept.
    pub(crate) fn oldest_state(&self) -> Result<u64, StoreError> {
        match self.oldest_change()? {
            // What the block found is the state after its parent.
            Some(number) => Ok(number.saturating_sub(1)),
            None => Ok(self.head()?.0.number),
        }
    }

    fn oldest_change(&self) -> Result<Option<u64>, StoreError> {
        let mut oldest = None;
        self.scan(self.tables.changes, &[], |number, _| {
            oldest = Some(u64::from_be_bytes(array("a block number", number)?));
            Ok(false)
        })?;
        Ok(oldest)
    }

    /// Fails with [`StoreError::Pruned`] if the state of a block is not kept.
    pub(crate) fn require_state(&self, number: u64) -> Result<(), StoreError> {
        let newest = self.head()?.0.number;
        let oldest = self.oldest_state()?;
        if (oldest..=newest).contains(&number) {
            return Ok(());
        }
        Err(StoreError::Pruned {
            number,
            oldest,
            newest,
        })
    }

    /// What leads from the newest state back to that of block `to`, if it takes
    /// at most `keys_max` changed keys; `None` past that.
    pub(crate) fn reverse_diff(
        &self,
        to: u64,
        keys_max: usize,
    ) -> Result<Option<StateDiff>, StoreError> {
        self.require_state(to)?;
        let mut diff = StateDiff::default();
        let mut n_keys = 0;
        for number in to + 1..=self.head()?.0.number {
            for changed in self.changed_keys(number)?.accounts {
                n_keys += 1 + changed.slots.len();
                if n_keys > keys_max {
                    return Ok(None);
                }
                let address = changed.address;
                let change = match diff.accounts.entry(address) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(AccountChange {
                        account: self.account_at(address, to)?,
                        ..Default::default()
                    }),
                };
                for slot in changed.slots {
                    if let Entry::Vacant(entry) = change.storage.entry(slot) {
                        entry.insert(self.storage_at(address, slot, to)?);
                    }
                }
            }
        }
        Ok(Some(diff))
    }

    /// The account after block `number`, whose state is kept.
    fn account_at(
        &self,
        address: Address,
        number: u64,
    ) -> Result<Option<AccountState>, StoreError> {
        let table = self.tables.account_history;
        match self.value_before(table, address.as_slice(), number)? {
            Some(before) if before.is_empty() => Ok(None),
            Some(before) => decode_account(&before).map(Some),
            None => self.account(address),
        }
    }

    /// The value of a slot after block `number`, whose state is kept.
    fn storage_at(&self, address: Address, slot: U256, number: u64) -> Result<U256, StoreError> {
        let table = self.tables.storage_history;
        match self.value_before(table, &storage_key(address, slot), number)? {
            Some(before) => decode_value(&before),
            None => self.storage(address, slot),
        }
    }

    /// What the first block after `number` that changed a key found there.
    fn value_before(
        &self,
        table: Database,
        key: &[u8],
        number: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(next) = number.checked_add(1) else {
            return Ok(None);
        };
        let from = [key, &next.to_be_bytes()].concat();
        let mut cursor = self.tx.cursor(table)?;
        let found = cursor.set_range::<Vec<u8>, Vec<u8>>(&from)?;
        Ok(found.and_then(|(at, before)| at.starts_with(key).then_some(before)))
    }

    fn changed_keys(&self, number: u64) -> Result<ChangedKeys, StoreError> {
        let bytes = self
            .get(self.tables.changes, &number.to_be_bytes())?
            .ok_or_else(|| StoreError::corrupt(format!("the changes of block {number}")))?;
        ChangedKeys::decode(&bytes)
    }
}

impl Txn<Rw> {
    /// Adds the next block, what it does to the state, and its history; forgets
    /// the history of blocks that are `history_max_blocks` old (never, if that
    /// is 0).
    pub(crate) fn write_block(
        &self,
        block: &StoredBlock<'_>,
        update: &StateUpdate,
        history_max_blocks: u64,
    ) -> Result<(), StoreError> {
        let number = block.header.number;
        self.append(block)?;
        self.write_history(number, update)?;
        self.write_state(update)?;
        if history_max_blocks == 0 {
            return Ok(());
        }
        let Some(newest) = number.checked_sub(history_max_blocks) else {
            return Ok(());
        };
        for _ in 0..PRUNE_MAX_BLOCKS {
            match self.oldest_change()? {
                Some(oldest) if oldest <= newest => self.forget_history(oldest)?,
                _ => break,
            }
        }
        Ok(())
    }

    /// Takes the chain back to block `to`: the state and all indices are then
    /// what they were when it was the newest. Blocks above it are gone.
    ///
    /// # Errors
    /// [`StoreError::Pruned`] if the state of `to` is not kept;
    /// [`StoreError::Corrupt`] if what is restored does not have its root.
    pub(crate) fn unwind(&self, to: u64) -> Result<(), StoreError> {
        self.unwind_in_steps(to, UNWIND_KEYS_MAX)
    }

    /// [`Txn::unwind`] by steps of at most `keys_max` changed keys, or of one
    /// block, so that its memory is bounded.
    pub(super) fn unwind_in_steps(&self, to: u64, keys_max: usize) -> Result<(), StoreError> {
        self.require_state(to)?;
        let mut newest = self.head()?.0.number;
        while newest > to {
            let mut step_to = to;
            let diff = loop {
                let is_one = newest - step_to == 1;
                let keys_max = if is_one { usize::MAX } else { keys_max };
                match self.reverse_diff(step_to, keys_max)? {
                    Some(diff) => break diff,
                    None => step_to = newest - (newest - step_to) / 2,
                }
            };
            self.unwind_one_step(newest, step_to, &diff)?;
            newest = step_to;
        }
        Ok(())
    }

    fn unwind_one_step(&self, newest: u64, to: u64, diff: &StateDiff) -> Result<(), StoreError> {
        let (target, _) = self
            .header(to)?
            .ok_or_else(|| StoreError::corrupt(format!("block {to} is missing")))?;
        let update = self.state_update(diff)?;
        if update.root != target.state_root {
            let what = format!("the history back to block {to}");
            return Err(StoreError::corrupt(what));
        }
        self.write_state(&update)?;
        for number in (to + 1..=newest).rev() {
            for hash in self.changed_keys(number)?.codes {
                self.delete(self.tables.codes, hash.as_slice())?;
            }
            self.forget_history(number)?;
            self.remove_block(number)?;
        }
        Ok(())
    }

    fn forget_history(&self, number: u64) -> Result<(), StoreError> {
        let tables = self.tables;
        let block = number.to_be_bytes();
        for changed in self.changed_keys(number)?.accounts {
            if changed.is_account_changed {
                let key = [changed.address.as_slice(), &block].concat();
                self.delete(tables.account_history, &key)?;
            }
            for slot in changed.slots {
                let key = [&storage_key(changed.address, slot)[..], &block].concat();
                self.delete(tables.storage_history, &key)?;
            }
        }
        self.delete(tables.changes, &block)
    }
}

/// The state after one kept block, from the view that a transaction has.
#[derive(Debug)]
pub(crate) struct Snapshot {
    txn: Txn<Ro>,
    /// `None` for the newest block, which needs no history.
    number: Option<u64>,
}

impl Snapshot {
    /// The state after block `number`.
    ///
    /// # Errors
    /// [`StoreError::Pruned`] if it is not kept.
    pub(crate) fn at(txn: Txn<Ro>, number: u64) -> Result<Self, StoreError> {
        if number == txn.head()?.0.number {
            return Ok(Self { txn, number: None });
        }
        txn.require_state(number)?;
        Ok(Self {
            txn,
            number: Some(number),
        })
    }
}

impl StateReader for Snapshot {
    type Error = StoreError;

    fn account(&self, address: Address) -> Result<Option<AccountState>, StoreError> {
        match self.number {
            None => self.txn.account(address),
            Some(number) => self.txn.account_at(address, number),
        }
    }

    fn code(&self, hash: B256) -> Result<Bytes, StoreError> {
        self.txn.code(hash)
    }

    fn storage(&self, address: Address, slot: U256) -> Result<U256, StoreError> {
        match self.number {
            None => self.txn.storage(address, slot),
            Some(number) => self.txn.storage_at(address, slot, number),
        }
    }

    fn block_hash(&self, number: u64) -> Result<B256, StoreError> {
        match self.number {
            Some(newest) if number > newest => Ok(B256::ZERO),
            _ => self.txn.block_hash(number),
        }
    }
}
