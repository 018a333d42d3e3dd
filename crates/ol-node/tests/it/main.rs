//! The node as its users see it: a directory, transactions in, answers out.

#[cfg(test)]
mod common;
#[cfg(test)]
mod follow;
#[cfg(test)]
mod history;
#[cfg(test)]
mod import;
#[cfg(test)]
mod node;
#[cfg(test)]
mod open;
#[cfg(test)]
mod pool;
#[cfg(test)]
mod reorg;
