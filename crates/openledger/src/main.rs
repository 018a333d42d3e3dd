//! The `openledger` binary: arguments, composition and output. What it starts
//! and calls lives in the other crates.

mod assets;
mod chain;
mod cli;
mod command;
mod device;
mod factory;
mod genesis;
mod http;
mod instance;
mod log;
mod output;
mod registration;
mod rpc;
mod secret;
mod signals;
mod spans;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::instance::Layout;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = log::init(&cli) {
        return fail(&error);
    }
    match run(&cli, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough (`… | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// An end that has an exit code of its own.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: u8,
    pub(crate) said: String,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.said)
    }
}

impl std::error::Error for Exit {}

/// Says in one line what could not be done, and each cause after a colon.
fn fail(error: &anyhow::Error) -> ExitCode {
    let line = format!("{error:#}").replace('\n', " ");
    if let Some(exit) = error.downcast_ref::<Exit>() {
        let _ = writeln!(io::stderr(), "{line}");
        return ExitCode::from(exit.code);
    }
    let _ = writeln!(io::stderr(), "error: {line}");
    ExitCode::FAILURE
}

fn run(cli: &Cli, out: output::Out<'_>) -> anyhow::Result<()> {
    let layout = Layout::of(&cli.global)?;
    let json = cli.global.json;
    match &cli.command {
        Command::Up(args) => command::up::run(&layout, args, out),
        Command::Serve(args) => command::serve::run(&layout, args, json, out),
        Command::Fleet(command) => command::fleet::run(&layout, command, json, out),
        Command::Node(command) => command::node::run(&layout, command, json, out),
        Command::Doctor(args) => command::doctor::run(&layout, args, json, out),
        Command::Key(command) => command::key::run(&layout, command, json, out),
        Command::Ask(args) => command::ask::run(&layout, args, json, out),
        Command::Receipt(command) => command::receipt::run(&layout, command, json, out),
        Command::Datanet(command) => command::datanet::run(&layout, command, json, out),
        Command::Train(args) => command::train::run(&layout, args, json, out),
        Command::Adapter(args) => command::adapter::run(&args.command, json, out),
        Command::SelfQuery(args) => command::self_query::run(&layout, args, json, out),
        Command::Sketch(args) => command::sketch::run(&layout, args, json, out),
        Command::Earnings(command) => command::earnings::run(&layout, command, json, out),
        Command::Bond(args) => command::bond::run(&layout, args, json, out),
        Command::Watch(args) => command::watch::run(&layout, args, json, out),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    })
}
