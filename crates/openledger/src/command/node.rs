//! `openledger node …`: the chain without models.

mod run;
mod status;

use serde_json::json;

use crate::cli::NodeCommand;
use crate::instance::Layout;
use crate::output::{Out, print};
use crate::secret::create_signer;

pub(crate) fn run(
    layout: &Layout,
    command: &NodeCommand,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    match command {
        NodeCommand::Run(args) => run::run(layout, args, json, out),
        NodeCommand::Status(args) => status::run(layout, args, json, out),
        NodeCommand::Keygen { file } => {
            let address = create_signer(file)?.address();
            let value = json!({"address": address, "file": file});
            print(out, json, &value, |out| writeln!(out, "{address}"))
        }
    }
}
