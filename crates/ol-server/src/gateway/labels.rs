//! Names for the hashes and addresses of receipts.

use std::collections::BTreeMap;

use ol_types::{Address, B256};

/// The names by which datanets know contributors and records. Receipts and
/// chain know addresses and hashes only; where a name is known it is shown
/// beside them.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    contributors: BTreeMap<Address, String>,
    records: BTreeMap<B256, String>,
}

impl Labels {
    /// Remembers the name of a contributor.
    pub fn name_contributor(&mut self, address: Address, name: &str) {
        self.contributors.insert(address, name.to_owned());
    }

    /// Remembers the contributor's own name for a record.
    pub fn name_record(&mut self, record: B256, name: &str) {
        self.records.insert(record, name.to_owned());
    }

    /// The contributor's name, or the address where no name is known.
    pub(super) fn contributor(&self, address: Address) -> String {
        let name = self.contributors.get(&address).cloned();
        name.unwrap_or_else(|| format!("{address:#x}"))
    }

    /// The record's name, or its hash where no name is known.
    pub(super) fn record(&self, record: B256) -> String {
        let name = self.records.get(&record).cloned();
        name.unwrap_or_else(|| record.to_string())
    }
}
