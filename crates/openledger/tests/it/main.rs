//! The binary as a user meets it: whole instances in fresh folders, spoken to
//! over HTTP and the command line.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod claims;
mod harness;
mod node_alone;
mod own_data;
mod refusals;
mod serve;
mod spans;
mod the_loop;
mod training;
mod watch;
