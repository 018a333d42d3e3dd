//! Accounts and slots that a message touches (EIP-2930).

use std::collections::{BTreeMap, BTreeSet};

use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_primitives::{Address, B256, U256};
use revm::bytecode::opcode;
use revm::interpreter::Interpreter;
use revm::interpreter::interpreter_types::{InputsTr, Jumps, StackTr};

use super::budget::Budget;

/// What one entry takes in memory, with its place in a tree.
const ENTRY_SIZE_BYTES: usize = 96;

/// Collects an access list.
#[derive(Debug)]
pub(crate) struct Accesses {
    /// Accounts that are warm without a list; their slots are not.
    excluded: BTreeSet<Address>,
    touched: BTreeMap<Address, BTreeSet<U256>>,
}

impl Accesses {
    /// Starts from a list; what is on it stays on it.
    pub(crate) fn new(excluded: BTreeSet<Address>, list: &AccessList) -> Self {
        let mut touched = BTreeMap::<_, BTreeSet<_>>::new();
        for item in &list.0 {
            let slots = item
                .storage_keys
                .iter()
                .map(|&key| U256::from_be_bytes(key.0));
            touched.entry(item.address).or_default().extend(slots);
        }
        Self { excluded, touched }
    }

    pub(super) fn step(&mut self, interpreter: &Interpreter, budget: &mut Budget) {
        let opcode = interpreter.bytecode.opcode();
        let stack = StackTr::data(&interpreter.stack);
        match (opcode, stack) {
            (opcode::SLOAD | opcode::SSTORE, [.., slot]) => {
                let account = interpreter.input.target_address();
                let slots = self.touched.entry(account).or_default();
                if slots.insert(*slot) {
                    budget.take_bytes(ENTRY_SIZE_BYTES);
                }
            }
            (
                opcode::EXTCODECOPY
                | opcode::EXTCODEHASH
                | opcode::EXTCODESIZE
                | opcode::BALANCE
                | opcode::SELFDESTRUCT,
                [.., address],
            )
            | (
                opcode::CALL | opcode::CALLCODE | opcode::DELEGATECALL | opcode::STATICCALL,
                [.., address, _],
            ) => self.touch(*address, budget),
            _ => {}
        }
    }

    fn touch(&mut self, word: U256, budget: &mut Budget) {
        let address = Address::from_word(B256::from(word));
        if !self.excluded.contains(&address) && !self.touched.contains_key(&address) {
            budget.take_bytes(ENTRY_SIZE_BYTES);
            self.touched.insert(address, BTreeSet::new());
        }
    }

    /// The list, accounts and slots ascending.
    pub(crate) fn into_list(self) -> AccessList {
        let items = self.touched.into_iter().map(|(address, slots)| {
            let storage_keys = slots.into_iter().map(B256::from).collect();
            AccessListItem {
                address,
                storage_keys,
            }
        });
        AccessList(items.collect())
    }
}
