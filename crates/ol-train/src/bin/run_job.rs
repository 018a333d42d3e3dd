//! `ol-train-run SPEC FOLDER`: our trainer as a runner (`specs/runner.md`).
//! `openledger train run` is the same with datanets and the hub.

#![expect(clippy::print_stderr, reason = "a command-line tool")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use ol_runtime::{Shutdown, SystemClock};
use ol_train::job::{JobSpec, LocalRunner, NoSources, run_as_program};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(spec), Some(folder), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: ol-train-run SPEC FOLDER");
        return ExitCode::from(2);
    };
    let stop = match Shutdown::on_signals() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("signals cannot be heard: {error}");
            return ExitCode::FAILURE;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runner = LocalRunner::new(threads, Box::new(NoSources), Arc::new(SystemClock::new()));
    let (code, said) = run_as_program(&runner, JobSpec::load(&spec), folder, &stop);
    if !said.is_empty() {
        eprintln!("{said}");
    }
    ExitCode::from(code)
}
