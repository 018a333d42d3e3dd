//! Transactions and receipts as they stand in a block.
//!
//! One envelope serves both rule sets: the types of Ethereum, and the deposit
//! of the OP Stack. Which of them a block may hold is a matter of its rules;
//! a type that is not here (0x7D of the OP Stack among them) cannot even be
//! decoded.

use alloy_consensus::crypto::RecoveryError;
use alloy_consensus::transaction::{SignerRecoverable, TxHashRef};
use alloy_consensus::{
    Eip658Value, Receipt, ReceiptEnvelope, Sealable, Sealed, Signed, TransactionEnvelope,
    TxEip1559, TxEip2930, TxEip4844, TxEip7702, TxLegacy, TxReceipt, TxType,
};
use alloy_eips::Typed2718;
use alloy_eips::eip2718::{Decodable2718, Eip2718Error, Eip2718Result, Encodable2718, IsTyped2718};
use alloy_evm::eth::receipt_builder::{ReceiptBuilder, ReceiptBuilderCtx};
use alloy_evm::{Evm, FromRecoveredTx, FromTxWithEncoded};
use alloy_op_evm::OpTx;
use alloy_op_evm::block::receipt_builder::OpReceiptBuilder;
use alloy_primitives::{Address, B256, Bloom, Bytes, Log};
use alloy_rlp::{BufMut, Decodable, Encodable};
use op_alloy_consensus::{
    DEPOSIT_TX_TYPE_ID, OpDepositReceipt, OpDepositReceiptWithBloom, OpTransaction, TxDeposit,
    TxPostExec,
};
use revm::context::TxEnv;

/// A transaction as it stands in a block.
///
/// A blob transaction is without its blobs here, as in a block; the form with
/// blobs, which nodes send each other, does not decode.
#[derive(Debug, Clone, TransactionEnvelope)]
#[envelope(tx_type_name = TransactionType)]
pub enum Transaction {
    /// Type 0: a gas price, and a chain id since EIP-155.
    #[envelope(ty = 0)]
    Legacy(Signed<TxLegacy>),
    /// Type 1: with an access list.
    #[envelope(ty = 1)]
    Eip2930(Signed<TxEip2930>),
    /// Type 2: with a maximum fee and a tip.
    #[envelope(ty = 2)]
    Eip1559(Signed<TxEip1559>),
    /// Type 3: with blobs. Only under Ethereum's rules.
    #[envelope(ty = 3)]
    Eip4844(Signed<TxEip4844>),
    /// Type 4: with code delegations.
    #[envelope(ty = 4)]
    Eip7702(Signed<TxEip7702>),
    /// Type 0x7E: a deposit from L1, which is not signed. Only under our rules.
    #[envelope(ty = 0x7E)]
    #[serde(serialize_with = "op_alloy_consensus::serde_deposit_tx_rpc")]
    Deposit(Sealed<TxDeposit>),
}

impl Transaction {
    /// The hash that names the transaction.
    #[must_use]
    pub fn tx_hash(&self) -> B256 {
        *TxHashRef::tx_hash(self)
    }
}

impl TxHashRef for Transaction {
    fn tx_hash(&self) -> &B256 {
        match self {
            Self::Legacy(signed) => signed.hash(),
            Self::Eip2930(signed) => signed.hash(),
            Self::Eip1559(signed) => signed.hash(),
            Self::Eip4844(signed) => signed.hash(),
            Self::Eip7702(signed) => signed.hash(),
            Self::Deposit(sealed) => sealed.hash_ref(),
        }
    }
}

impl SignerRecoverable for Transaction {
    fn recover_signer(&self) -> Result<Address, RecoveryError> {
        match self {
            Self::Legacy(signed) => SignerRecoverable::recover_signer(signed),
            Self::Eip2930(signed) => SignerRecoverable::recover_signer(signed),
            Self::Eip1559(signed) => SignerRecoverable::recover_signer(signed),
            Self::Eip4844(signed) => SignerRecoverable::recover_signer(signed),
            Self::Eip7702(signed) => SignerRecoverable::recover_signer(signed),
            Self::Deposit(deposit) => Ok(deposit.from),
        }
    }

    fn recover_signer_unchecked(&self) -> Result<Address, RecoveryError> {
        match self {
            Self::Legacy(signed) => SignerRecoverable::recover_signer_unchecked(signed),
            Self::Eip2930(signed) => SignerRecoverable::recover_signer_unchecked(signed),
            Self::Eip1559(signed) => SignerRecoverable::recover_signer_unchecked(signed),
            Self::Eip4844(signed) => SignerRecoverable::recover_signer_unchecked(signed),
            Self::Eip7702(signed) => SignerRecoverable::recover_signer_unchecked(signed),
            Self::Deposit(deposit) => Ok(deposit.from),
        }
    }
}

impl OpTransaction for Transaction {
    fn is_deposit(&self) -> bool {
        matches!(self, Self::Deposit(_))
    }

    fn as_deposit(&self) -> Option<&Sealed<TxDeposit>> {
        match self {
            Self::Deposit(deposit) => Some(deposit),
            _ => None,
        }
    }

    fn as_post_exec(&self) -> Option<&Sealed<TxPostExec>> {
        None
    }
}

impl From<Signed<TxLegacy>> for Transaction {
    fn from(signed: Signed<TxLegacy>) -> Self {
        Self::Legacy(signed)
    }
}

impl From<Signed<TxEip2930>> for Transaction {
    fn from(signed: Signed<TxEip2930>) -> Self {
        Self::Eip2930(signed)
    }
}

impl From<Signed<TxEip1559>> for Transaction {
    fn from(signed: Signed<TxEip1559>) -> Self {
        Self::Eip1559(signed)
    }
}

impl From<Signed<TxEip4844>> for Transaction {
    fn from(signed: Signed<TxEip4844>) -> Self {
        Self::Eip4844(signed)
    }
}

impl From<Signed<TxEip7702>> for Transaction {
    fn from(signed: Signed<TxEip7702>) -> Self {
        Self::Eip7702(signed)
    }
}

impl From<TxDeposit> for Transaction {
    fn from(deposit: TxDeposit) -> Self {
        Self::Deposit(deposit.seal_slow())
    }
}

impl FromTxWithEncoded<Transaction> for OpTx {
    fn from_encoded_tx(transaction: &Transaction, sender: Address, encoded: Bytes) -> Self {
        match transaction {
            Transaction::Legacy(signed) => Self::from_encoded_tx(signed, sender, encoded),
            Transaction::Eip2930(signed) => Self::from_encoded_tx(signed, sender, encoded),
            Transaction::Eip1559(signed) => Self::from_encoded_tx(signed, sender, encoded),
            Transaction::Eip4844(signed) => Self::from_encoded_tx(signed, sender, encoded),
            Transaction::Eip7702(signed) => Self::from_encoded_tx(signed, sender, encoded),
            Transaction::Deposit(deposit) => {
                Self::from_encoded_tx(deposit.inner(), sender, encoded)
            }
        }
    }
}

impl FromRecoveredTx<Transaction> for OpTx {
    fn from_recovered_tx(transaction: &Transaction, sender: Address) -> Self {
        Self::from_encoded_tx(transaction, sender, transaction.encoded_2718().into())
    }
}

impl FromRecoveredTx<Transaction> for TxEnv {
    fn from_recovered_tx(transaction: &Transaction, sender: Address) -> Self {
        match transaction {
            Transaction::Legacy(signed) => Self::from_recovered_tx(signed, sender),
            Transaction::Eip2930(signed) => Self::from_recovered_tx(signed, sender),
            Transaction::Eip1559(signed) => Self::from_recovered_tx(signed, sender),
            Transaction::Eip4844(signed) => Self::from_recovered_tx(signed, sender),
            Transaction::Eip7702(signed) => Self::from_recovered_tx(signed, sender),
            // Refused by its type before it gets here.
            Transaction::Deposit(deposit) => Self {
                tx_type: DEPOSIT_TX_TYPE_ID,
                caller: sender,
                gas_limit: deposit.gas_limit,
                kind: deposit.to,
                value: deposit.value,
                data: deposit.input.clone(),
                ..Self::default()
            },
        }
    }
}

impl FromTxWithEncoded<Transaction> for TxEnv {
    fn from_encoded_tx(transaction: &Transaction, sender: Address, _encoded: Bytes) -> Self {
        Self::from_recovered_tx(transaction, sender)
    }
}

/// What a transaction left in its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionReceipt<T = Log> {
    /// Of a transaction of Ethereum.
    Ethereum(ReceiptEnvelope<T>),
    /// Of a deposit.
    Deposit(OpDepositReceiptWithBloom<T>),
}

impl<T> TransactionReceipt<T> {
    /// Status, gas and logs.
    #[must_use]
    pub fn as_receipt(&self) -> &Receipt<T> {
        match self {
            Self::Ethereum(
                ReceiptEnvelope::Legacy(inner)
                | ReceiptEnvelope::Eip2930(inner)
                | ReceiptEnvelope::Eip1559(inner)
                | ReceiptEnvelope::Eip4844(inner)
                | ReceiptEnvelope::Eip7702(inner),
            ) => &inner.receipt,
            Self::Deposit(deposit) => &deposit.receipt.inner,
        }
    }

    /// Whether the transaction succeeded. A receipt from before Byzantium does
    /// not say, and counts as a success.
    #[must_use]
    pub fn status(&self) -> bool {
        self.as_receipt().status.coerce_status()
    }

    /// What it logged, in order.
    #[must_use]
    pub fn logs(&self) -> &[T] {
        &self.as_receipt().logs
    }

    /// Gas of the block up to and with this transaction.
    #[must_use]
    pub fn cumulative_gas_used(&self) -> u64 {
        self.as_receipt().cumulative_gas_used
    }

    /// Bloom filter over the logs.
    #[must_use]
    pub fn logs_bloom(&self) -> &Bloom {
        match self {
            Self::Ethereum(receipt) => receipt.logs_bloom(),
            Self::Deposit(deposit) => &deposit.logs_bloom,
        }
    }

    /// The same receipt with other logs.
    #[must_use]
    pub fn map_logs<U>(self, change: impl FnMut(T) -> U) -> TransactionReceipt<U> {
        match self {
            Self::Ethereum(receipt) => TransactionReceipt::Ethereum(receipt.map_logs(change)),
            Self::Deposit(deposit) => {
                let logs_bloom = deposit.logs_bloom;
                TransactionReceipt::Deposit(OpDepositReceiptWithBloom {
                    receipt: deposit.receipt.map_logs(change),
                    logs_bloom,
                })
            }
        }
    }
}

impl<T> TxReceipt for TransactionReceipt<T>
where
    T: Clone + std::fmt::Debug + PartialEq + Eq + Send + Sync,
{
    type Log = T;

    fn status_or_post_state(&self) -> Eip658Value {
        self.as_receipt().status
    }

    fn status(&self) -> bool {
        self.as_receipt().status.coerce_status()
    }

    fn bloom(&self) -> Bloom {
        *self.logs_bloom()
    }

    fn bloom_cheap(&self) -> Option<Bloom> {
        Some(*self.logs_bloom())
    }

    fn cumulative_gas_used(&self) -> u64 {
        self.as_receipt().cumulative_gas_used
    }

    fn logs(&self) -> &[T] {
        &self.as_receipt().logs
    }
}

impl Typed2718 for TransactionReceipt {
    fn ty(&self) -> u8 {
        match self {
            Self::Ethereum(receipt) => receipt.ty(),
            Self::Deposit(_) => DEPOSIT_TX_TYPE_ID,
        }
    }
}

impl IsTyped2718 for TransactionReceipt {
    fn is_type(type_id: u8) -> bool {
        type_id == DEPOSIT_TX_TYPE_ID || <ReceiptEnvelope as IsTyped2718>::is_type(type_id)
    }
}

impl Encodable2718 for TransactionReceipt {
    fn encode_2718_len(&self) -> usize {
        match self {
            Self::Ethereum(receipt) => receipt.encode_2718_len(),
            Self::Deposit(deposit) => 1 + deposit.length(),
        }
    }

    fn encode_2718(&self, out: &mut dyn BufMut) {
        match self {
            Self::Ethereum(receipt) => receipt.encode_2718(out),
            Self::Deposit(deposit) => {
                out.put_u8(DEPOSIT_TX_TYPE_ID);
                deposit.encode(out);
            }
        }
    }
}

impl Decodable2718 for TransactionReceipt {
    fn typed_decode(ty: u8, buf: &mut &[u8]) -> Eip2718Result<Self> {
        match ty {
            DEPOSIT_TX_TYPE_ID => Ok(Self::Deposit(Decodable::decode(buf)?)),
            1..=4 => ReceiptEnvelope::typed_decode(ty, buf).map(Self::Ethereum),
            _ => Err(Eip2718Error::UnexpectedType(ty)),
        }
    }

    fn fallback_decode(buf: &mut &[u8]) -> Eip2718Result<Self> {
        ReceiptEnvelope::fallback_decode(buf).map(Self::Ethereum)
    }
}

/// Makes the receipts of executed transactions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Receipts;

impl Receipts {
    fn ethereum<E: Evm>(
        tx_type: TxType,
        context: ReceiptBuilderCtx<'_, TransactionType, E>,
    ) -> TransactionReceipt {
        let receipt = Receipt {
            status: Eip658Value::Eip658(context.result.is_success()),
            cumulative_gas_used: context.cumulative_gas_used,
            logs: context.result.into_logs(),
        };
        TransactionReceipt::Ethereum(ReceiptEnvelope::from_typed(tx_type, receipt))
    }
}

impl ReceiptBuilder for Receipts {
    type Transaction = Transaction;
    type Receipt = TransactionReceipt;

    fn build_receipt<E: Evm>(
        &self,
        context: ReceiptBuilderCtx<'_, TransactionType, E>,
    ) -> TransactionReceipt {
        // A deposit is refused by its type before it gets here.
        let tx_type = ethereum_type(context.tx_type).unwrap_or(TxType::Legacy);
        Self::ethereum(tx_type, context)
    }
}

impl OpReceiptBuilder for Receipts {
    type Transaction = Transaction;
    type Receipt = TransactionReceipt;

    fn build_receipt<'a, E: Evm>(
        &self,
        context: ReceiptBuilderCtx<'a, TransactionType, E>,
    ) -> Result<TransactionReceipt, ReceiptBuilderCtx<'a, TransactionType, E>> {
        match ethereum_type(context.tx_type) {
            Some(tx_type) => Ok(Self::ethereum(tx_type, context)),
            None => Err(context),
        }
    }

    fn build_deposit_receipt(&self, receipt: OpDepositReceipt) -> TransactionReceipt {
        TransactionReceipt::Deposit(receipt.with_bloom())
    }
}

const fn ethereum_type(tx_type: TransactionType) -> Option<TxType> {
    match tx_type {
        TransactionType::Legacy => Some(TxType::Legacy),
        TransactionType::Eip2930 => Some(TxType::Eip2930),
        TransactionType::Eip1559 => Some(TxType::Eip1559),
        TransactionType::Eip4844 => Some(TxType::Eip4844),
        TransactionType::Eip7702 => Some(TxType::Eip7702),
        TransactionType::Deposit => None,
    }
}

#[cfg(test)]
mod tests;
