//! Logs by filter, over any range of blocks.

use alloy_primitives::{Address, B256, Log};

use super::{QueryError, ReceiptInBlock, known_header, receipts_of};
use crate::Node;
use crate::store::logs::{LogQuery, of_address, of_topic};

/// Most blocks that a log query looks at which names no address and no topic.
pub const LOG_RANGE_MAX_BLOCKS: u64 = 10_000;

/// Most blocks that one log query reads, after the index has said which.
pub const LOG_BLOCKS_READ_MAX: usize = 10_000;

/// Most logs that one query returns.
pub const LOGS_MAX: usize = 10_000;

/// Which logs are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// First block.
    pub from_block: u64,
    /// Last block, itself included; blocks above the head are ignored.
    pub to_block: u64,
    /// Emitters, any of these; all if it is empty.
    pub addresses: Vec<Address>,
    /// For each topic, any of these; all if it is empty.
    pub topics: [Vec<B256>; 4],
}

impl LogFilter {
    /// Whether a log is asked for, wherever it is.
    #[must_use]
    pub fn matches(&self, log: &Log) -> bool {
        let has_address = self.addresses.is_empty() || self.addresses.contains(&log.address);
        let has_topics = self.topics.iter().enumerate().all(|(position, wanted)| {
            wanted.is_empty()
                || log
                    .topics()
                    .get(position)
                    .is_some_and(|topic| wanted.contains(topic))
        });
        has_address && has_topics
    }

    fn names_nothing(&self) -> bool {
        self.addresses.is_empty() && self.topics.iter().all(Vec::is_empty)
    }

    fn index_query(&self) -> LogQuery {
        let addresses = self.addresses.iter().map(of_address).collect();
        let topics = (0..)
            .zip(&self.topics)
            .map(|(position, wanted)| wanted.iter().map(|t| of_topic(position, t)).collect());
        LogQuery {
            groups: std::iter::once(addresses)
                .chain(topics)
                .filter(|group: &Vec<_>| !group.is_empty())
                .collect(),
        }
    }
}

/// A log and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogInBlock {
    /// The log.
    pub log: Log,
    /// Its block, by number.
    pub block_number: u64,
    /// Its block, by hash.
    pub block_hash: B256,
    /// Unix time of the block, in seconds.
    pub block_timestamp_s: u64,
    /// Its transaction.
    pub transaction_hash: B256,
    /// Position of the transaction in the block.
    pub transaction_position: usize,
    /// Position of the log in the block.
    pub position: u64,
}

impl Node {
    /// The logs that a filter asks for, in order.
    ///
    /// A filter that names an address or a topic may span the whole chain: an
    /// index says which blocks to read.
    ///
    /// # Errors
    /// [`QueryError::Range`] if the range is upside down;
    /// [`QueryError::TooManyBlocks`] and [`QueryError::TooManyLogs`] past the
    /// limits, with a range that is within them.
    pub fn logs(&self, filter: &LogFilter) -> Result<Vec<LogInBlock>, QueryError> {
        let txn = self.read()?;
        let (head, _) = txn.head()?;
        let (from, to) = (filter.from_block, filter.to_block.min(head.number));
        if filter.to_block < from {
            return Err(QueryError::Range {
                from,
                to: filter.to_block,
            });
        }
        let mut found = Vec::new();
        let mut n_read = 0;
        let mut read = |number: u64| -> Result<(), QueryError> {
            if n_read == LOG_BLOCKS_READ_MAX {
                return Err(QueryError::TooManyBlocks {
                    from,
                    to: number.saturating_sub(1),
                });
            }
            n_read += 1;
            let (header, hash) = known_header(&txn, number)?;
            let mut in_block = Vec::new();
            for receipt in receipts_of(&txn, &header, hash)? {
                collect_logs(filter, &receipt, &mut in_block);
            }
            if found.len() + in_block.len() > LOGS_MAX {
                return Err(QueryError::TooManyLogs {
                    from,
                    to: number.saturating_sub(1).max(from),
                });
            }
            found.append(&mut in_block);
            Ok(())
        };
        if filter.names_nothing() {
            if to.saturating_sub(from) >= LOG_RANGE_MAX_BLOCKS {
                return Err(QueryError::TooManyBlocks {
                    from,
                    to: from + LOG_RANGE_MAX_BLOCKS - 1,
                });
            }
            for number in from..=to {
                read(number)?;
            }
        } else {
            let searched_to = txn.blocks_with_logs(&filter.index_query(), from, to, read)?;
            if searched_to < to {
                return Err(QueryError::TooManyBlocks {
                    from,
                    to: searched_to,
                });
            }
        }
        Ok(found)
    }
}

fn collect_logs(filter: &LogFilter, receipt: &ReceiptInBlock, found: &mut Vec<LogInBlock>) {
    let place = &receipt.place;
    for (position, log) in (receipt.n_logs_before..).zip(receipt.receipt.logs()) {
        if filter.matches(log) {
            found.push(LogInBlock {
                log: log.clone(),
                block_number: place.header.number,
                block_hash: place.block_hash,
                block_timestamp_s: place.header.timestamp,
                transaction_hash: place.transaction.tx_hash(),
                transaction_position: place.position,
                position,
            });
        }
    }
}

#[cfg(test)]
mod tests;
