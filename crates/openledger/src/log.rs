//! What is logged to stderr, and how it looks.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, LogFormat, NodeCommand};

/// Begins to log as the command line says.
///
/// # Errors
/// If the filter cannot be understood.
pub(crate) fn init(cli: &Cli) -> anyhow::Result<()> {
    let filter = match &cli.global.log_level {
        Some(given) => EnvFilter::builder()
            .parse(given)
            .with_context(|| format!("{given:?} is no filter for --log-level"))?,
        None => EnvFilter::new(default_filter(&cli.command)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match cli.global.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A node's operator wants to see it work; who runs a command, its result.
const fn default_filter(command: &Command) -> &'static str {
    match command {
        Command::Node(NodeCommand::Run(_)) => "info",
        _ => "warn",
    }
}
