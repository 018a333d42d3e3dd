//! One module a command: parse, call the libraries, print.

pub(crate) mod adapter;
pub(crate) mod ask;
pub(crate) mod bond;
pub(crate) mod claims;
pub(crate) mod datanet;
pub(crate) mod doctor;
pub(crate) mod earnings;
pub(crate) mod fleet;
pub(crate) mod key;
pub(crate) mod node;
pub(crate) mod receipt;
pub(crate) mod rerun;
pub(crate) mod self_query;
pub(crate) mod serve;
pub(crate) mod sketch;
pub(crate) mod train;
pub(crate) mod up;
pub(crate) mod watch;
