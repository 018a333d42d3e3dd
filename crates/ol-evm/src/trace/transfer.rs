//! Logs of a transaction, with transfers of native balance among them, for
//! `eth_simulateV1`.

use alloy_primitives::{Address, B256, Log, LogData, U256, address, b256};

use super::budget::Budget;

/// The emitter of the logs that stand for transfers.
///
/// # Source
/// `eth_simulateV1` in the Ethereum execution APIs.
const EMITTER: Address = address!("0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE");

/// `Transfer(address,address,uint256)`.
const TRANSFER: B256 = b256!("0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

/// Collects logs. Kept apart from the EVM's own, so that recording changes no
/// receipt.
#[derive(Debug, Default)]
pub(crate) struct TransferLogs {
    done: Vec<Log>,
    /// How many logs there were when each open frame began.
    open: Vec<usize>,
}

impl TransferLogs {
    pub(super) fn enter(&mut self) {
        self.open.push(self.done.len());
    }

    /// A frame ends; what it and those below it logged is undone if it failed.
    pub(super) fn leave(&mut self, is_success: bool) {
        if let Some(start) = self.open.pop()
            && !is_success
        {
            self.done.truncate(start);
        }
    }

    pub(super) fn transfer(
        &mut self,
        from: Address,
        to: Address,
        value_wei: U256,
        budget: &mut Budget,
    ) {
        if value_wei.is_zero() {
            return;
        }
        let topics = vec![TRANSFER, from.into_word(), to.into_word()];
        let data = value_wei.to_be_bytes::<32>().into();
        let log = Log {
            address: EMITTER,
            data: LogData::new_unchecked(topics, data),
        };
        self.log(log, budget);
    }

    pub(super) fn log(&mut self, log: Log, budget: &mut Budget) {
        if budget.take_bytes(size_of::<Log>() + log.data.data.len() + 128) {
            self.done.push(log);
        }
    }

    pub(crate) fn into_logs(self) -> Vec<Log> {
        self.done
    }
}
