//! Why a frame failed, in geth's words and in Parity's.

use std::fmt;

use revm::bytecode::opcode::OpCode;
use revm::interpreter::InstructionResult;

/// Why a frame failed. `Display` says it as geth does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It ran `REVERT`, or a precompile refused; state is undone, gas is not.
    Reverted,
    /// The gas did not suffice.
    OutOfGas,
    /// The 1,025th frame on top of each other.
    TooDeep,
    /// The sender has not what it sends.
    InsufficientBalance,
    /// A contract would be made where there is one.
    AddressCollision,
    /// The code of the new contract is too large.
    CodeTooLarge,
    /// The code that makes the contract is too large.
    InitCodeTooLarge,
    /// The code of the new contract begins with 0xEF (EIP-3541).
    CodeStartsWithEf,
    /// A jump to what is no `JUMPDEST`.
    InvalidJump,
    /// Something was to be written inside a `STATICCALL`.
    WriteProtection,
    /// More return data was read than there is.
    ReturnDataOutOfBounds,
    /// An instruction that this fork does not have.
    InvalidOpcode(u8),
    /// An instruction found too few words on the stack.
    StackUnderflow {
        /// Words that were there.
        have: usize,
        /// Words that it takes.
        need: usize,
    },
    /// An instruction would make the stack too high.
    StackOverflow {
        /// Words that were there.
        have: usize,
    },
    /// A precompile could not take its input.
    PrecompileFailed,
    /// The nonce of the account cannot grow.
    NonceOverflow,
}

impl Fault {
    /// What a result says; `None` if it is no failure. `at` is the last
    /// instruction of the frame and the height of the stack before it.
    pub(super) fn of(result: InstructionResult, at: (u8, usize)) -> Option<Self> {
        use InstructionResult as R;
        let (opcode, have) = at;
        let inputs = || OpCode::new(opcode).map_or(0, |opcode| usize::from(opcode.inputs()));
        Some(match result {
            R::Stop | R::Return | R::SelfDestruct => return None,
            R::Revert => Self::Reverted,
            R::OutOfGas
            | R::MemoryOOG
            | R::MemoryLimitOOG
            | R::PrecompileOOG
            | R::InvalidOperandOOG
            | R::ReentrancySentryOOG
            // Only ever seen where a trace was stopped, and then it is dropped.
            | R::FatalExternalError => Self::OutOfGas,
            R::CallTooDeep => Self::TooDeep,
            R::OutOfFunds | R::OverflowPayment => Self::InsufficientBalance,
            R::CreateCollision => Self::AddressCollision,
            R::CreateContractSizeLimit => Self::CodeTooLarge,
            R::CreateInitCodeSizeLimit => Self::InitCodeTooLarge,
            R::CreateContractStartingWithEF | R::CreateInitCodeStartingEF00 => {
                Self::CodeStartsWithEf
            }
            R::InvalidJump => Self::InvalidJump,
            R::StateChangeDuringStaticCall | R::CallNotAllowedInsideStatic => {
                Self::WriteProtection
            }
            R::OutOfOffset => Self::ReturnDataOutOfBounds,
            R::OpcodeNotFound
            | R::InvalidFEOpcode
            | R::InvalidEOFInitCode
            | R::InvalidExtDelegateCallTarget
            | R::InvalidImmediateEncoding
            | R::NotActivated => Self::InvalidOpcode(opcode),
            R::StackUnderflow => Self::StackUnderflow {
                have,
                need: inputs(),
            },
            R::StackOverflow => Self::StackOverflow { have },
            R::PrecompileError => Self::PrecompileFailed,
            R::NonceOverflow => Self::NonceOverflow,
        })
    }

    /// Whether the gas that was left went back to the caller.
    #[must_use]
    pub const fn keeps_gas(self) -> bool {
        matches!(
            self,
            Self::Reverted | Self::TooDeep | Self::InsufficientBalance
        )
    }

    /// What OpenEthereum's traces say.
    ///
    /// # Source
    /// The `trace` namespace as OpenEthereum, Erigon and geth's flatCallTracer
    /// word it.
    #[must_use]
    pub fn in_parity_words(self) -> String {
        match self {
            Self::Reverted => "Reverted".to_owned(),
            Self::OutOfGas | Self::CodeTooLarge => "Out of gas".to_owned(),
            Self::InvalidJump => "Bad jump destination".to_owned(),
            Self::ReturnDataOutOfBounds => "Out of bounds".to_owned(),
            Self::StackOverflow { .. } => "Out of stack".to_owned(),
            Self::StackUnderflow { .. } => "Stack underflow".to_owned(),
            Self::InvalidOpcode(_) => "Bad instruction".to_owned(),
            Self::PrecompileFailed => "Built-in failed".to_owned(),
            Self::WriteProtection => "Mutable Call In Static Context".to_owned(),
            Self::InsufficientBalance => "Insufficient balance for transfer".to_owned(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Reverted => f.write_str("execution reverted"),
            Self::OutOfGas => f.write_str("out of gas"),
            Self::TooDeep => f.write_str("max call depth exceeded"),
            Self::InsufficientBalance => f.write_str("insufficient balance for transfer"),
            Self::AddressCollision => f.write_str("contract address collision"),
            Self::CodeTooLarge => f.write_str("max code size exceeded"),
            Self::InitCodeTooLarge => f.write_str("max initcode size exceeded"),
            Self::CodeStartsWithEf => f.write_str("invalid code: must not begin with 0xef"),
            Self::InvalidJump => f.write_str("invalid jump destination"),
            Self::WriteProtection => f.write_str("write protection"),
            Self::ReturnDataOutOfBounds => f.write_str("return data out of bounds"),
            Self::InvalidOpcode(opcode) => write!(f, "invalid opcode: {}", opcode_name(opcode)),
            Self::StackUnderflow { have, need } => {
                write!(f, "stack underflow ({have} <=> {need})")
            }
            Self::StackOverflow { have } => write!(f, "stack limit reached {have} (1023)"),
            Self::PrecompileFailed => f.write_str("precompiled failed"),
            Self::NonceOverflow => f.write_str("nonce uint64 overflow"),
        }
    }
}

/// The name of an instruction, as geth prints it.
#[must_use]
pub fn opcode_name(opcode: u8) -> String {
    match OpCode::new(opcode) {
        Some(known) => known.as_str().to_owned(),
        None => format!("opcode {opcode:#x} not defined"),
    }
}
