//! Which chain a folder holds.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use ol_node::Genesis;

use crate::instance::Layout;

/// Largest genesis file.
const GENESIS_MAX_SIZE_BYTES: u64 = 64 << 20;

/// Where a chain begins.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) genesis: Genesis,
    /// What to keep in the folder, if it was given on the command line.
    keep: Option<Vec<u8>>,
}

impl Origin {
    /// The genesis that is given, else the one the folder keeps, else for
    /// development the built-in one.
    ///
    /// # Errors
    /// If there is none of them, or it cannot be read.
    pub(crate) fn find(
        layout: &Layout,
        given: Option<&Path>,
        is_dev: bool,
    ) -> anyhow::Result<Self> {
        let kept = layout.genesis();
        if let Some(path) = given {
            let (genesis, bytes) = read(path)?;
            let keep = (!kept.exists()).then_some(bytes);
            return Ok(Self { genesis, keep });
        }
        let genesis = if kept.exists() {
            read(&kept)?.0
        } else if is_dev {
            ol_contracts::genesis::dev()
        } else {
            bail!(
                "which chain? give --genesis FILE, or --dev for the development chain; {} keeps none yet",
                layout.root().display()
            );
        };
        Ok(Self {
            genesis,
            keep: None,
        })
    }

    /// Keeps the genesis in the folder, once it has made a chain there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn keep(&self, layout: &Layout) -> anyhow::Result<()> {
        let Some(bytes) = &self.keep else {
            return Ok(());
        };
        let path = layout.genesis();
        ol_model::write_atomic(&path, bytes).with_context(|| path.display().to_string())
    }
}

fn read(path: &Path) -> anyhow::Result<(Genesis, Vec<u8>)> {
    let shown = path.display();
    let file = fs::File::open(path).with_context(|| format!("could not read {shown}"))?;
    let mut bytes = Vec::new();
    file.take(GENESIS_MAX_SIZE_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("could not read {shown}"))?;
    if bytes.len() as u64 > GENESIS_MAX_SIZE_BYTES {
        bail!("{shown} is larger than {GENESIS_MAX_SIZE_BYTES} bytes");
    }
    let genesis =
        serde_json::from_slice(&bytes).with_context(|| format!("{shown} is not a genesis"))?;
    Ok((genesis, bytes))
}
