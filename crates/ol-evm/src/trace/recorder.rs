//! The one inspector: what it records is chosen by parts.

use std::collections::BTreeMap;

use alloy_primitives::{Address, Log, Selector, U256};
use revm::Inspector;
use revm::context_interface::ContextTr;
use revm::inspector::JournalExt;
use revm::interpreter::interpreter_types::{Jumps, StackTr};
use revm::interpreter::{
    CallInputs, CallOutcome, CallScheme, CreateInputs, CreateOutcome, Interpreter,
};

use super::access::Accesses;
use super::budget::Budget;
use super::frame::Frames;
use super::step::Steps;
use super::transfer::TransferLogs;

/// Records a transaction while it runs. Never changes what it does, but for
/// ending it when a limit is passed.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) budget: Budget,
    pub(super) frames: Option<Frames>,
    pub(super) steps: Option<Steps>,
    pub(super) selectors: Option<BTreeMap<(Selector, usize), u64>>,
    pub(crate) accesses: Option<Accesses>,
    pub(crate) transfers: Option<TransferLogs>,
    /// The instruction that runs, and the height of the stack before it.
    at: (u8, usize),
}

impl Recorder {
    pub(crate) const fn new(budget: Budget) -> Self {
        Self {
            budget,
            frames: None,
            steps: None,
            selectors: None,
            accesses: None,
            transfers: None,
            at: (0, 0),
        }
    }

    /// One that records nothing.
    pub(crate) fn off() -> Self {
        Self::new(Budget::default())
    }

    fn count_selector<CTX: ContextTr>(&mut self, context: &CTX, inputs: &CallInputs) {
        let Some(selectors) = &mut self.selectors else {
            return;
        };
        let input = inputs.input.as_bytes(context);
        if let Some((selector, arguments)) = input.split_first_chunk::<4>() {
            let key = (Selector::from(*selector), arguments.len());
            if !selectors.contains_key(&key) {
                self.budget.take_bytes(64);
            }
            *selectors.entry(key).or_default() += 1;
        }
    }

    fn leave(&mut self, is_success: bool) {
        if let Some(steps) = &mut self.steps {
            steps.leave();
        }
        if let Some(transfers) = &mut self.transfers {
            transfers.leave(is_success);
        }
    }
}

impl<CTX> Inspector<CTX> for Recorder
where
    CTX: ContextTr<Journal: JournalExt>,
{
    fn step(&mut self, interpreter: &mut Interpreter, context: &mut CTX) {
        self.budget.see_step();
        let height = StackTr::len(&interpreter.stack);
        self.at = (interpreter.bytecode.opcode(), height);
        if let Some(steps) = &mut self.steps {
            steps.step(interpreter, &mut self.budget);
        }
        if let Some(accesses) = &mut self.accesses {
            accesses.step(interpreter, &mut self.budget);
        }
        self.budget.stop_if_passed(interpreter, context);
    }

    fn step_end(&mut self, interpreter: &mut Interpreter, context: &mut CTX) {
        if let Some(steps) = &mut self.steps {
            steps.step_end(interpreter, context, self.at.1);
        }
    }

    fn log(&mut self, context: &mut CTX, log: Log) {
        if let Some(frames) = &mut self.frames {
            frames.log(context, &log, &mut self.budget);
        }
        if let Some(transfers) = &mut self.transfers {
            transfers.log(log, &mut self.budget);
        }
    }

    fn call(&mut self, context: &mut CTX, inputs: &mut CallInputs) -> Option<CallOutcome> {
        self.count_selector(context, inputs);
        if let Some(frames) = &mut self.frames {
            frames.call(context, inputs, &mut self.budget);
        }
        if let Some(steps) = &mut self.steps {
            steps.enter();
        }
        if let Some(transfers) = &mut self.transfers {
            transfers.enter();
            // CALLCODE sends to itself.
            if inputs.scheme != CallScheme::CallCode
                && let Some(value_wei) = inputs.transfer_value()
            {
                let (from, to) = (inputs.transfer_from(), inputs.transfer_to());
                transfers.transfer(from, to, value_wei, &mut self.budget);
            }
        }
        None
    }

    fn call_end(&mut self, _: &mut CTX, _: &CallInputs, outcome: &mut CallOutcome) {
        if let Some(frames) = &mut self.frames {
            frames.call_end(outcome, self.at, &mut self.budget);
        }
        self.leave(outcome.result.result.is_ok());
    }

    fn create(&mut self, context: &mut CTX, inputs: &mut CreateInputs) -> Option<CreateOutcome> {
        if self.frames.is_some() || self.transfers.is_some() {
            // The account is loaded: it runs, or it sends the transaction.
            let caller = context.journal_ref().evm_state().get(&inputs.caller());
            let nonce = caller.map_or(0, |account| account.info.nonce);
            let to = inputs.created_address(nonce);
            if let Some(frames) = &mut self.frames {
                frames.create(inputs, to, &mut self.budget);
            }
            if let Some(transfers) = &mut self.transfers {
                transfers.enter();
                transfers.transfer(inputs.caller(), to, inputs.value(), &mut self.budget);
            }
        }
        if let Some(steps) = &mut self.steps {
            steps.enter();
        }
        None
    }

    fn create_end(&mut self, _: &mut CTX, _: &CreateInputs, outcome: &mut CreateOutcome) {
        if let Some(frames) = &mut self.frames {
            frames.create_end(outcome, self.at, &mut self.budget);
        }
        self.leave(outcome.result.result.is_ok());
    }

    fn selfdestruct(&mut self, contract: Address, target: Address, value: U256) {
        if let Some(frames) = &mut self.frames {
            frames.self_destruct(contract, target, value, &mut self.budget);
        }
        if let Some(transfers) = &mut self.transfers {
            transfers.transfer(contract, target, value, &mut self.budget);
        }
    }
}
