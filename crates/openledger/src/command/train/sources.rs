//! What a job may name besides files: datanets of this folder.

use std::path::PathBuf;

use ol_datanet::cluster_owners;
use ol_runtime::DataDir;
use ol_train::TrainingRecord;
use ol_train::job::Sources;

use crate::command::datanet;
use crate::instance::Layout;

/// The datanets below `--dir`.
#[derive(Debug)]
pub(super) struct FolderSources {
    pub(super) layout: Layout,
}

impl Sources for FolderSources {
    fn hub_model(
        &self,
        id: &str,
        _revision: Option<&str>,
        _log: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, String> {
        Err(format!("{id}: name a folder that holds the model"))
    }

    fn datanet(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<(String, Vec<TrainingRecord>), String> {
        self.records(name, version)
            .map_err(|error| format!("{error:#}"))
    }
}

impl FolderSources {
    fn records(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> anyhow::Result<(String, Vec<TrainingRecord>)> {
        let data = DataDir::open_or_create(self.layout.root())?;
        let datanets = datanet::open(&data)?;
        let Some(mut id) = datanets.head(name)? else {
            anyhow::bail!("datanet {name} has no records");
        };
        if let Some(wanted) = version {
            loop {
                let manifest = datanets.manifest(id)?;
                if manifest.version == wanted {
                    break;
                }
                match manifest.parent {
                    Some(parent) if manifest.version > wanted => id = parent,
                    _ => anyhow::bail!("datanet {name} has no version {wanted}"),
                }
            }
        }
        let records = datanets.records(id)?;
        let records = cluster_owners(&records)
            .iter()
            .map(|owner| TrainingRecord {
                question: owner.record.question.clone(),
                answer: owner.record.answer.clone(),
            })
            .collect();
        Ok((id.to_string(), records))
    }
}
