//! Single instructions ("struct logs").

use alloy_primitives::{Address, Bytes, U256};
use revm::bytecode::opcode;
use revm::context_interface::ContextTr;
use revm::inspector::JournalExt;
use revm::interpreter::interpreter_types::{
    InputsTr, Jumps, LoopControl, MemoryTr, ReturnData, StackTr,
};
use revm::interpreter::{InstructionResult, Interpreter};

use super::budget::Budget;
use super::fault::Fault;

/// What of each instruction is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOptions {
    /// The stack before it.
    pub stack: bool,
    /// The memory before it.
    pub memory: bool,
    /// The slot that it reads or writes.
    pub storage: bool,
    /// What the last call below returned.
    pub return_data: bool,
    /// Most instructions recorded; the others run unseen. 0 is all.
    pub first_max: u64,
}

impl Default for StepOptions {
    /// As geth: stack and storage.
    fn default() -> Self {
        Self {
            stack: true,
            memory: false,
            storage: true,
            return_data: false,
            first_max: 0,
        }
    }
}

/// One instruction, before it runs but for the fields that say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Position in the code.
    pub pc: usize,
    /// The instruction.
    pub opcode: u8,
    /// Frames below which it runs; 1 in the transaction's own.
    pub depth: u64,
    /// Gas left.
    pub gas: u64,
    /// Gas that it took, with what it gave to a call; all that was left if
    /// that did not suffice.
    pub gas_cost: u64,
    /// The refund counter of the transaction.
    pub refund: u64,
    /// Why it could not be begun: too little gas, or a stack too low or high.
    pub fault: Option<Fault>,
    /// The account whose storage it works on.
    pub address: Address,
    /// The stack, last word on top; if asked for.
    pub stack: Option<Box<[U256]>>,
    /// The memory; if asked for. Steps that share a memory share its bytes.
    pub memory: Option<Bytes>,
    /// Slot and value of `SLOAD` and `SSTORE`; if asked for.
    pub storage: Option<(U256, U256)>,
    /// Return data of the last call; if asked for.
    pub return_data: Option<Bytes>,
}

/// Records instructions in order.
#[derive(Debug)]
pub(super) struct Steps {
    options: StepOptions,
    pub(super) done: Vec<Step>,
    /// Whether the last instruction seen was recorded.
    is_open: bool,
    /// The slot that the open instruction works on, if it is a storage one.
    slot: Option<U256>,
    /// Refund counters: of the frames below the running one together, and of
    /// each at its last instruction.
    refund_below: i64,
    refunds: Vec<i64>,
    /// Memory of the last step of each frame.
    memories: Vec<Option<Bytes>>,
}

impl Steps {
    pub(super) const fn new(options: StepOptions) -> Self {
        Self {
            options,
            done: Vec::new(),
            is_open: false,
            slot: None,
            refund_below: 0,
            refunds: Vec::new(),
            memories: Vec::new(),
        }
    }

    /// A frame begins; it may have no code.
    pub(super) fn enter(&mut self) {
        self.refund_below += self.refunds.last().copied().unwrap_or_default();
        self.refunds.push(0);
        self.memories.push(None);
    }

    /// The frame ends.
    pub(super) fn leave(&mut self) {
        self.refunds.pop();
        self.memories.pop();
        self.refund_below -= self.refunds.last().copied().unwrap_or_default();
    }

    pub(super) fn step(&mut self, interpreter: &Interpreter, budget: &mut Budget) {
        let refund = interpreter.gas.refunded();
        if let Some(last) = self.refunds.last_mut() {
            *last = refund;
        }
        let is_beyond =
            self.options.first_max != 0 && self.done.len() as u64 >= self.options.first_max;
        self.is_open = !is_beyond && budget.take_step(size_of::<Step>());
        if !self.is_open {
            return;
        }
        let opcode = interpreter.bytecode.opcode();
        let stack = StackTr::data(&interpreter.stack);
        let wants_stack = self.options.stack && budget.take_bytes(size_of_val(stack));
        let step = Step {
            pc: interpreter.bytecode.pc(),
            opcode,
            depth: self.refunds.len() as u64,
            gas: interpreter.gas.remaining(),
            gas_cost: 0,
            refund: u64::try_from(self.refund_below + refund).unwrap_or(0),
            fault: None,
            address: interpreter.input.target_address(),
            stack: wants_stack.then(|| stack.into()),
            memory: self.memory(interpreter, budget),
            storage: None,
            return_data: self
                .options
                .return_data
                .then(|| interpreter.return_data.buffer().clone()),
        };
        // Kept by the step alone once the frame has moved on.
        if let Some(data) = &step.return_data {
            budget.take_bytes(data.len());
        }
        let step = self.with_slot(step, stack);
        self.done.push(step);
    }

    pub(super) fn step_end<CTX: ContextTr>(
        &mut self,
        interpreter: &mut Interpreter,
        context: &CTX,
        stack_height_before: usize,
    ) where
        CTX::Journal: JournalExt,
    {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let Some(step) = self.done.last_mut() else {
            return;
        };
        step.gas_cost = step.gas.saturating_sub(interpreter.gas.remaining());
        let result = interpreter.bytecode.instruction_result();
        step.fault = result
            .filter(|result| is_before_execution(*result))
            .and_then(|result| Fault::of(result, (step.opcode, stack_height_before)));
        if step.opcode == opcode::SLOAD
            && step.fault.is_none()
            && let Some(slot) = self.slot.take()
        {
            step.storage = present_value(context, step.address, slot).map(|value| (slot, value));
        }
    }

    /// The step with the slot that it is about to write; one that is about to
    /// be read gets its value when the step has run.
    fn with_slot(&mut self, mut step: Step, stack: &[U256]) -> Step {
        if self.options.storage {
            match (step.opcode, stack) {
                (opcode::SLOAD, [.., slot]) => self.slot = Some(*slot),
                (opcode::SSTORE, [.., value, slot]) => step.storage = Some((*slot, *value)),
                _ => {}
            }
        }
        step
    }

    /// The memory before the step, shared with the step before where that
    /// cannot have changed it.
    fn memory(&mut self, interpreter: &Interpreter, budget: &mut Budget) -> Option<Bytes> {
        if !self.options.memory {
            return None;
        }
        let kept = self.memories.last_mut()?;
        if kept.is_none() {
            let size_bytes = MemoryTr::size(&interpreter.memory);
            if !budget.take_bytes(size_bytes) {
                return None;
            }
            let slice = MemoryTr::slice(&interpreter.memory, 0..size_bytes);
            *kept = Some(Bytes::copy_from_slice(&slice));
        }
        let memory = kept.clone();
        if may_change_memory(interpreter.bytecode.opcode()) {
            *kept = None;
        }
        memory
    }
}

/// The faults that geth shows at the instruction: those found before it runs.
const fn is_before_execution(result: InstructionResult) -> bool {
    use InstructionResult as R;
    matches!(
        result,
        R::OutOfGas
            | R::MemoryOOG
            | R::MemoryLimitOOG
            | R::InvalidOperandOOG
            | R::ReentrancySentryOOG
            | R::StackUnderflow
            | R::StackOverflow
    )
}

fn present_value<CTX: ContextTr>(context: &CTX, address: Address, slot: U256) -> Option<U256>
where
    CTX::Journal: JournalExt,
{
    let account = context.journal_ref().evm_state().get(&address)?;
    Some(account.storage.get(&slot)?.present_value)
}

const fn may_change_memory(opcode: u8) -> bool {
    matches!(
        opcode,
        opcode::MSTORE
            | opcode::MSTORE8
            | opcode::MLOAD
            | opcode::MCOPY
            | opcode::KECCAK256
            | opcode::CALLDATACOPY
            | opcode::CODECOPY
            | opcode::EXTCODECOPY
            | opcode::RETURNDATACOPY
            | opcode::LOG0
            | opcode::LOG1
            | opcode::LOG2
            | opcode::LOG3
            | opcode::LOG4
            | opcode::CREATE
            | opcode::CREATE2
            | opcode::CALL
            | opcode::CALLCODE
            | opcode::DELEGATECALL
            | opcode::STATICCALL
            | opcode::RETURN
            | opcode::REVERT
    )
}
