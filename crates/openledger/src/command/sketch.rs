//! `openledger sketch`: sketches the records of trained models, with their
//! adapters as they are.

use ol_runtime::DataDir;
use serde_json::{Value, json};

use crate::cli::SketchArgs;
use crate::command::datanet;
use crate::factory::{Base, calibrate, chosen_folders, sketch_again, sketch_new};
use crate::instance::Layout;
use crate::output::{Out, print};

pub(crate) fn run(
    layout: &Layout,
    args: &SketchArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let data = DataDir::open_or_create(layout.root())?;
    let datanets = datanet::open(&data)?;
    let folders = chosen_folders(layout, args.model.as_deref())?;
    let base = Base::load(&layout.base(), None)?;
    let mut rows = Vec::new();
    for folder in folders {
        let n_records = if args.new {
            sketch_new(&base, &datanets, &folder)?
        } else if args.calibrate {
            calibrate(&base, &datanets, &folder)?
        } else {
            sketch_again(&base, &datanets, &folder, args.gradients_at.map(Into::into))?
        };
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        rows.push(json!({ "model": name, "n_records": n_records }));
    }
    print(out, json, &Value::Array(rows.clone()), |out| {
        for row in &rows {
            let name = row["model"].as_str().unwrap_or_default();
            writeln!(out, "{name:<20} {} records sketched", row["n_records"])?;
        }
        Ok(())
    })
}
