//! The binary as a user meets it: whole instances in fresh folders, spoken to
//! over HTTP and the command line.

mod harness;
mod refusals;
mod the_loop;
