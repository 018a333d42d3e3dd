//! Calls and creations, as a tree in one list.

use alloy_primitives::{Address, B256, Bytes, Log, U256};
use revm::context_interface::{ContextTr, CreateScheme, JournalTr};
use revm::interpreter::{
    CallInputs, CallOutcome, CallScheme, CreateInputs, CreateOutcome, InstructionResult,
    InterpreterResult,
};

use super::budget::Budget;
use super::fault::Fault;

/// What made a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the EVM's own names")]
pub enum FrameKind {
    Call,
    CallCode,
    DelegateCall,
    StaticCall,
    Create,
    Create2,
    SelfDestruct,
}

impl FrameKind {
    /// The name of the instruction.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Call => "CALL",
            Self::CallCode => "CALLCODE",
            Self::DelegateCall => "DELEGATECALL",
            Self::StaticCall => "STATICCALL",
            Self::Create => "CREATE",
            Self::Create2 => "CREATE2",
            Self::SelfDestruct => "SELFDESTRUCT",
        }
    }

    /// Whether a contract is made.
    #[must_use]
    pub const fn is_create(self) -> bool {
        matches!(self, Self::Create | Self::Create2)
    }
}

/// One call, creation or self-destruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Position of the frame that made it; `None` for the transaction itself.
    pub parent: Option<usize>,
    /// What made it.
    pub kind: FrameKind,
    /// Who called; for `DELEGATECALL` the contract that borrows the code.
    pub from: Address,
    /// Who was called: the account whose code runs. For a creation the new
    /// contract, and nobody if it failed; for `SELFDESTRUCT` who gets the coins.
    pub to: Option<Address>,
    /// What was sent along. `DELEGATECALL` shows what its caller got.
    pub value_wei: U256,
    /// Gas that it was given.
    pub gas_limit: u64,
    /// Gas that it used, before refunds.
    pub gas_used: u64,
    /// Calldata, or the code that makes the contract.
    pub input: Bytes,
    /// What it returned, reverted with, or the code of the new contract.
    pub output: Bytes,
    /// Why it failed, if it did.
    pub fault: Option<Fault>,
    /// Whether a precompile answered.
    pub is_precompile: bool,
    /// Frames directly below it.
    pub n_children: usize,
    /// What it logged itself. Logs of what failed are not here.
    pub logs: Vec<FrameLog>,
}

/// A log and its place among the frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameLog {
    /// The emitter.
    pub address: Address,
    /// Topics.
    pub topics: Vec<B256>,
    /// Data.
    pub data: Bytes,
    /// How many frames its frame had made before.
    pub position: usize,
    /// Position among the logs of its block.
    pub index: u64,
}

/// What a frame takes in memory besides its bytes.
const FRAME_SIZE_BYTES: usize = size_of::<Frame>();

/// Records frames in the order in which they begin.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) done: Vec<Frame>,
    /// Positions of the frames that have not ended. Beyond the first, `None`
    /// where only the first is wanted.
    open: Vec<Option<usize>>,
    only_top: bool,
    with_logs: bool,
    /// Logs of the block before this transaction.
    n_logs_before: u64,
}

impl Frames {
    pub(super) const fn new(only_top: bool, with_logs: bool, n_logs_before: u64) -> Self {
        Self {
            done: Vec::new(),
            open: Vec::new(),
            only_top,
            with_logs,
            n_logs_before,
        }
    }

    pub(super) fn call<CTX: ContextTr>(
        &mut self,
        context: &CTX,
        inputs: &CallInputs,
        budget: &mut Budget,
    ) {
        let (kind, from, to) = match inputs.scheme {
            CallScheme::Call => (FrameKind::Call, inputs.caller, inputs.target_address),
            CallScheme::StaticCall => (FrameKind::StaticCall, inputs.caller, inputs.target_address),
            CallScheme::CallCode => (
                FrameKind::CallCode,
                inputs.target_address,
                inputs.bytecode_address,
            ),
            CallScheme::DelegateCall => (
                FrameKind::DelegateCall,
                inputs.target_address,
                inputs.bytecode_address,
            ),
        };
        // Asked before the bytes are copied.
        let is_wanted = self.is_wanted() && budget.take_bytes(inputs.input.len());
        let input = if is_wanted {
            inputs.input.bytes(context)
        } else {
            Bytes::new()
        };
        let frame = Frame {
            input,
            ..new_frame(kind, from, Some(to), inputs.call_value(), inputs.gas_limit)
        };
        self.begin(frame, budget);
    }

    pub(super) fn create(&mut self, inputs: &CreateInputs, to: Address, budget: &mut Budget) {
        let kind = match inputs.scheme() {
            CreateScheme::Create2 { .. } => FrameKind::Create2,
            CreateScheme::Create | CreateScheme::Custom { .. } => FrameKind::Create,
        };
        let is_wanted = self.is_wanted() && budget.take_bytes(inputs.init_code().len());
        let input = if is_wanted {
            inputs.init_code().clone()
        } else {
            Bytes::new()
        };
        let frame = Frame {
            input,
            ..new_frame(
                kind,
                inputs.caller(),
                Some(to),
                inputs.value(),
                inputs.gas_limit(),
            )
        };
        self.begin(frame, budget);
    }

    pub(super) fn call_end(&mut self, outcome: &CallOutcome, at: (u8, usize), budget: &mut Budget) {
        if let Some(frame) = self.end(&outcome.result, at, budget) {
            frame.is_precompile = outcome.was_precompile_called;
        }
    }

    pub(super) fn create_end(
        &mut self,
        outcome: &CreateOutcome,
        at: (u8, usize),
        budget: &mut Budget,
    ) {
        if let Some(frame) = self.end(&outcome.result, at, budget) {
            frame.to = outcome.address.filter(|_| frame.fault.is_none());
        }
    }

    pub(super) fn self_destruct(
        &mut self,
        contract: Address,
        to: Address,
        value_wei: U256,
        budget: &mut Budget,
    ) {
        if self.only_top {
            return;
        }
        let frame = new_frame(FrameKind::SelfDestruct, contract, Some(to), value_wei, 0);
        self.begin(frame, budget);
        self.open.pop();
    }

    pub(super) fn log<CTX: ContextTr>(&mut self, context: &CTX, log: &Log, budget: &mut Budget) {
        let Some(&Some(position)) = self.open.last() else {
            return;
        };
        let size_bytes = size_of::<FrameLog>() + log.data.data.len() + 128;
        if !self.with_logs || !budget.take_bytes(size_bytes) {
            return;
        }
        // The journal has this log already, and has lost those of failed frames.
        let in_transaction = context.journal_ref().logs().len().saturating_sub(1);
        let frame = &mut self.done[position];
        frame.logs.push(FrameLog {
            address: log.address,
            topics: log.topics().to_vec(),
            data: log.data.data.clone(),
            position: frame.n_children,
            index: self.n_logs_before + in_transaction as u64,
        });
    }

    /// The frames, without the logs of those that failed or stand below one.
    pub(super) fn finish(mut self) -> Vec<Frame> {
        if self.with_logs {
            let mut is_undone = Vec::with_capacity(self.done.len());
            for frame in &mut self.done {
                let parent_is = frame.parent.is_some_and(|parent| is_undone[parent]);
                let is = parent_is || frame.fault.is_some();
                if is {
                    frame.logs = Vec::new();
                }
                is_undone.push(is);
            }
        }
        self.done
    }

    const fn is_wanted(&self) -> bool {
        self.open.is_empty() || !self.only_top
    }

    fn begin(&mut self, mut frame: Frame, budget: &mut Budget) {
        let parent = self.open.last().copied().flatten();
        if !self.is_wanted() || !budget.take_bytes(FRAME_SIZE_BYTES) {
            self.open.push(None);
            return;
        }
        if let Some(parent) = parent {
            self.done[parent].n_children += 1;
        }
        frame.parent = parent;
        self.open.push(Some(self.done.len()));
        self.done.push(frame);
    }

    fn end(
        &mut self,
        result: &InterpreterResult,
        at: (u8, usize),
        budget: &mut Budget,
    ) -> Option<&mut Frame> {
        let position = self.open.pop().flatten()?;
        let frame = &mut self.done[position];
        frame.fault = Fault::of(result.result, at);
        frame.gas_used = match frame.fault {
            Some(fault) if !fault.keeps_gas() => frame.gas_limit,
            _ => result.gas.total_gas_spent(),
        };
        let has_output = result.result.is_ok() || result.result == InstructionResult::Revert;
        if has_output && budget.take_bytes(result.output.len()) {
            frame.output = result.output.clone();
        }
        Some(frame)
    }
}

const fn new_frame(
    kind: FrameKind,
    from: Address,
    to: Option<Address>,
    value_wei: U256,
    gas_limit: u64,
) -> Frame {
    Frame {
        parent: None,
        kind,
        from,
        to,
        value_wei,
        gas_limit,
        gas_used: 0,
        input: Bytes::new(),
        output: Bytes::new(),
        fault: None,
        is_precompile: false,
        n_children: 0,
        logs: Vec::new(),
    }
}
