//! What a job may name besides files: models of the hub, datanets of this folder.

use std::ops::ControlFlow;
use std::path::PathBuf;

use ol_datanet::cluster_owners;
use ol_hub::{Hub, HubOptions, Reference};
use ol_runtime::DataDir;
use ol_train::TrainingRecord;
use ol_train::job::Sources;

use crate::command::datanet;
use crate::instance::Layout;

/// The hub, and the datanets below `--dir`.
#[derive(Debug)]
pub(super) struct FolderSources {
    pub(super) layout: Layout,
}

impl Sources for FolderSources {
    fn hub_model(
        &self,
        id: &str,
        revision: Option<&str>,
        log: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, String> {
        let options = HubOptions::from_env(|name| std::env::var(name).ok());
        let hub = Hub::new(options.map_err(said)?).map_err(said)?;
        let reference = Reference::new(id, revision.unwrap_or("main"), None).map_err(said)?;
        let mut file = String::new();
        let snapshot = hub.fetch(&reference, &mut |progress| {
            if progress.file != file {
                file.clone_from(&progress.file);
                let (done, total) = (progress.done_bytes >> 20, progress.total_bytes >> 20);
                log(&format!("{id}: {file}, {done} of {total} MiB are here"));
            }
            ControlFlow::Continue(())
        });
        let snapshot = snapshot.map_err(said)?;
        if snapshot.gguf.is_some() {
            return Err(format!(
                "{id} has GGUF files only; jobs train on safetensors"
            ));
        }
        log(&format!("{id} at commit {}", snapshot.commit));
        Ok(snapshot.dir)
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

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
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
