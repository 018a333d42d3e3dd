//! Prints keccak256 of the kernels' sources and of their PTX, for
//! `kernels/build.sh`.
#![expect(clippy::print_stdout, reason = "a program that prints")]

use ol_types::keccak256;

fn main() -> std::io::Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/");
    let read = |name: &str| std::fs::read(format!("{folder}{name}"));
    let mut sources = read("kernels.h")?;
    sources.extend(read("kernels.cu")?);
    println!("{}", keccak256(&sources));
    println!("{}", keccak256(&read("kernels.ptx")?));
    Ok(())
}
