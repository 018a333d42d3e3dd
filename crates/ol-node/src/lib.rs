//! The L2 node: state, blocks on demand, receipts and logs, kept across any crash.
