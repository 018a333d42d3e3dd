//! ModelFactory on one machine: from a version of a datanet to a model folder
//! with adapter, training manifest, record sketches and the map that sketches
//! answers.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use ol_attribution::checkpoint::{Checkpoints, Place};
use ol_attribution::map::SketchMap;
use ol_attribution::placebo::{PlaceboOptions, null_threshold};
use ol_attribution::query::QuerySketcher;
use ol_attribution::record::{RecordInput, SketchOptions, sketch_records};
use ol_datanet::{CommittedRecord, Datanets, cluster_owners};
use ol_model::{Lora, LoraConfig, Model, Pool, Random, Tokenizer, write_atomic};
use ol_poa::court::COURT_ENTRIES_MAX;
use ol_poa::{DEFAULT_POTS_BPS, ENTRY_SIZE_BYTES, Index};
use ol_runtime::{Objects, SystemClock};
use ol_train::{
    AdapterJob, AdapterReport, DatanetUse, LoraObjective, Observer, Progress, TrainOptions,
    TrainingManifest, TrainingRecord, curve_csv, curve_svg, train_adapter,
};
use ol_types::{B256, keccak256};
use serde::{Deserialize, Serialize};

use crate::instance::Layout;
use crate::output::{bar, note};

pub(crate) use self::tier::Tier;

mod tier;

/// Largest file of a map, in bytes.
const FILE_SIZE_BYTES_MAX: u64 = 64 << 20;

/// Largest file of sketches, in bytes.
const SKETCHES_SIZE_BYTES_MAX: u64 = (COURT_ENTRIES_MAX * ENTRY_SIZE_BYTES) as u64;

/// Most records whose gradients the map is fitted on, which are kept on disk until
/// it is done; of a larger datanet a sample. The others are sketched under the map.
const FIT_RECORDS_MAX: usize = ol_attribution::fit::RECORDS_MAX;

/// Chooses that sample.
const FIT_SAMPLE_SEED: u64 = 0x5a3e;

/// How a model is trained.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) rank: u16,
    pub(crate) epochs: u16,
    pub(crate) learning_rate: f32,
    pub(crate) seed: u64,
    /// What contributors are paid by: training, spans and context, in basis points;
    /// the tier's own, if nothing is said.
    pub(crate) pots_bps: Option<[u16; 3]>,
    /// How they are paid; by the number of records, if nothing is said.
    pub(crate) tier: Option<Tier>,
    /// Adapters on the way that are kept for the sketches, the last one counted.
    pub(crate) checkpoints: u32,
    /// Where the sketches' gradients are taken, given those.
    pub(crate) place: Place,
}

impl Recipe {
    /// What the shipped adapters were trained with, and `train` if nothing else is said.
    pub(crate) const SHIPPED: Self = Self {
        rank: 8,
        epochs: 6,
        learning_rate: 3e-3,
        seed: 1,
        pots_bps: None,
        tier: None,
        checkpoints: 3,
        place: Place::First,
    };

    /// The pots of a model of this tier.
    ///
    /// # Errors
    /// If it cannot have those that were asked for.
    fn pots_of(&self, tier: Tier) -> anyhow::Result<[u16; 3]> {
        match tier {
            Tier::Exact => Ok(self.pots_bps.unwrap_or(DEFAULT_POTS_BPS)),
            Tier::Optimistic => {
                let by_training = [10_000, 0, 0];
                ensure!(
                    self.pots_bps.is_none_or(|pots| pots == by_training),
                    "a model of the optimistic tier pays by training alone (--pots 100,0,0): spans \
                     and passages cannot be refuted on chain"
                );
                Ok(by_training)
            }
        }
    }
}

/// What a model folder says of itself: every part by hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) datanet: String,
    pub(crate) base_hash: B256,
    pub(crate) adapter_hash: B256,
    pub(crate) manifest_hash: B256,
    pub(crate) sketch_root: B256,
    pub(crate) sketch_map_hash: B256,
    /// What contributors are paid by: training, spans and context, in basis points.
    #[serde(default = "default_pots_bps")]
    pub(crate) pots_bps: [u16; 3],
    /// What a net must be above to be paid, in units of the scores: calibrated
    /// on placebos when the model is made.
    #[serde(default)]
    pub(crate) null_threshold: u64,
    /// Where the sketches' gradients are taken, given the checkpoints that the
    /// manifest names.
    #[serde(default)]
    pub(crate) place: Place,
    /// How contributors are paid by training.
    #[serde(default)]
    pub(crate) tier: Tier,
}

const fn default_pots_bps() -> [u16; 3] {
    DEFAULT_POTS_BPS
}

/// A model read from its folder, every part checked against the description.
#[derive(Debug)]
pub(crate) struct TrainedModel {
    pub(crate) description: Description,
    pub(crate) adapter: Lora,
    /// What the sketches are made with.
    pub(crate) checkpoints: Checkpoints,
    pub(crate) manifest: TrainingManifest,
    /// The object that the description names by hash.
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) index: Index,
    pub(crate) map: SketchMap,
}

/// The base model with its tokenizer and the threads they run on.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) pool: Pool,
}

impl Base {
    pub(crate) fn load(dir: &Path, threads: Option<usize>) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            model: Model::load(dir).context("the base model")?,
            tokenizer: Tokenizer::load(dir).context("the tokenizer of the base model")?,
            pool: Pool::new(threads.unwrap_or(cores)),
        })
    }
}

impl TrainedModel {
    /// Reads a model folder.
    ///
    /// # Errors
    /// If a file is missing, damaged, or not the one that the description names.
    pub(crate) fn load(dir: &Path, base: &Model) -> anyhow::Result<Self> {
        let path = |name: &str| dir.join(name);
        let read = |name: &str| read_limited(&path(name));
        let description: Description = serde_json::from_slice(&read("model.json")?)
            .with_context(|| format!("{} is damaged", path("model.json").display()))?;
        let check = |file: &str, found: B256, expected: B256| {
            ensure!(
                found == expected,
                "{} is {found}, model.json says {expected}",
                path(file).display()
            );
            Ok(())
        };
        ensure!(
            description.base_hash == base.hash(),
            "{} was trained on another base model ({})",
            dir.display(),
            description.base_hash
        );
        let adapter = Lora::load(dir, base.config())?;
        check(
            "adapter_model.safetensors",
            adapter.hash(),
            description.adapter_hash,
        )?;
        let manifest_bytes = read("manifest.json")?;
        check(
            "manifest.json",
            keccak256(&manifest_bytes),
            description.manifest_hash,
        )?;
        let manifest = training_manifest_of(&manifest_bytes)?;
        let checkpoints = checkpoints(dir, &manifest, &adapter, base)?;
        // The map first: it says when a folder is of another version.
        let map = read("sketch-map.bin")?;
        check(
            "sketch-map.bin",
            keccak256(&map),
            description.sketch_map_hash,
        )?;
        let map = SketchMap::from_bytes(&map).with_context(|| {
            let path = path("sketch-map.bin");
            format!("{} (`openledger sketch` makes it anew)", path.display())
        })?;
        let sketches = read_at_most(&path("sketches.bin"), SKETCHES_SIZE_BYTES_MAX)?;
        let index = Index::from_bytes(sketches)
            .with_context(|| path("sketches.bin").display().to_string())?;
        let root = description.tier.root(&index)?;
        check("sketches.bin", root, description.sketch_root)?;
        Ok(Self {
            description,
            adapter,
            checkpoints,
            manifest,
            manifest_bytes,
            index,
            map,
        })
    }
}

/// Trains and sketches a model on the newest version of a datanet, and writes
/// its folder. A run that was interrupted goes on from its checkpoint.
///
/// # Errors
/// If the datanet has too few or too many records, or a step fails.
pub(crate) fn train_model(
    base: &Base,
    datanets: &Datanets,
    datanet: &str,
    name: &str,
    recipe: &Recipe,
    dir: &Path,
) -> anyhow::Result<AdapterReport> {
    ensure!(
        ol_runtime::is_name(name),
        "a model's name has 1 to 64 lower-case letters, digits and hyphens"
    );
    let Some(version) = datanets.head(datanet)? else {
        bail!(
            "datanet {datanet} has no records; add some with `openledger datanet add {datanet} FILE`"
        );
    };
    let records = datanets.records(version)?;
    let owners = cluster_owners(&records);
    let contributors: BTreeSet<_> = owners.iter().map(|o| o.contributor_address).collect();
    let tier = Tier::of(recipe.tier, owners.len(), contributors.len());
    let tier = tier.with_context(|| format!("datanet {datanet}"))?;
    // Refused before the work, if it has pots that its tier cannot have.
    recipe.pots_of(tier)?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;

    let texts: Vec<TrainingRecord> = owners
        .iter()
        .map(|owner| TrainingRecord {
            question: owner.record.question.clone(),
            answer: owner.record.answer.clone(),
        })
        .collect();
    let checkpoint = dir.join("checkpoint");
    let job = AdapterJob {
        model: &base.model,
        tokenizer: &base.tokenizer,
        base_name: "openledger-base",
        records: &texts,
        lora: LoraConfig::all_linear(recipe.rank.into()),
        options: TrainOptions {
            seed: recipe.seed,
            learning_rate: recipe.learning_rate,
            checkpoint_every: 50,
            ..TrainOptions::default()
        },
        epochs: Some(recipe.epochs.into()),
        question_weight: 1.0,
        held_out_fraction: 0.05,
        out_dir: dir,
        segments: recipe.checkpoints,
        checkpoint: Some(&checkpoint),
    };
    let mut observer = TrainingBar {
        bar: bar(1, &format!("train {name}")),
    };
    let report = train_adapter(&job, &base.pool, &SystemClock::new(), &mut observer)?;
    observer.bar.finish();

    let held_out: Vec<B256> = report
        .held_out_records
        .iter()
        .map(|&at| owners[at].record_hash)
        .collect();
    let trained: Vec<&CommittedRecord> = owners
        .into_iter()
        .filter(|owner| !held_out.contains(&owner.record_hash))
        .collect();
    let manifest = training_manifest(
        base,
        datanets,
        version,
        &report,
        &job,
        held_out,
        trained.len(),
    )?;
    finish(
        base,
        &manifest,
        name,
        (recipe, tier),
        &trained,
        &report,
        dir,
    )?;
    Ok(report)
}

fn training_manifest(
    base: &Base,
    datanets: &Datanets,
    version: B256,
    report: &AdapterReport,
    job: &AdapterJob<'_>,
    mut held_out_records: Vec<B256>,
    n_records: usize,
) -> anyhow::Result<TrainingManifest> {
    held_out_records.sort_unstable();
    let source = datanets.manifest(version)?;
    Ok(TrainingManifest {
        format: TrainingManifest::FORMAT.to_owned(),
        base: base.model.hash(),
        adapter: report.adapter_hash,
        checkpoints: report.segments.iter().map(Lora::hash).collect(),
        datanets: vec![DatanetUse {
            name: source.name,
            version: source.version,
            manifest: version,
            n_records: n_records as u64,
        }],
        held_out_records,
        lora: job.lora.clone(),
        options: report.options.clone(),
        question_weight: job.question_weight,
        steps: report.steps,
        tokens: report.tokens,
        held_out_before: report.held_out_before,
        held_out_after: report.held_out_after,
    })
}

/// Sketches the records that were trained on, and writes everything but the adapter.
fn finish(
    base: &Base,
    manifest: &TrainingManifest,
    name: &str,
    (recipe, tier): (&Recipe, Tier),
    records: &[&CommittedRecord],
    report: &AdapterReport,
    dir: &Path,
) -> anyhow::Result<()> {
    let manifest_bytes = manifest.to_bytes();
    write(dir, "manifest.json", &manifest_bytes)?;
    write(dir, "loss.csv", curve_csv(&report.curve).as_bytes())?;
    let svg = curve_svg(&format!("{name}: loss"), &report.curve);
    write(dir, "loss.svg", svg.as_bytes())?;
    let description = Description {
        name: name.to_owned(),
        datanet: manifest.datanets[0].name.clone(),
        base_hash: base.model.hash(),
        adapter_hash: report.adapter_hash,
        manifest_hash: keccak256(&manifest_bytes),
        sketch_root: B256::ZERO,
        // Filled in when the records are sketched.
        sketch_map_hash: B256::ZERO,
        pots_bps: recipe.pots_of(tier)?,
        null_threshold: 0,
        place: recipe.place,
        tier,
    };
    let inputs = record_inputs(base, records)?;
    let checkpoints = on_the_way(report.segments.clone(), &report.adapter);
    let adapter = &report.adapter;
    sketch_all(base, adapter, checkpoints, &inputs, description, dir)
}

fn training_manifest_of(bytes: &[u8]) -> anyhow::Result<TrainingManifest> {
    TrainingManifest::from_bytes(bytes).context("the training manifest")
}

/// The checkpoints that a training manifest names, each in its folder, and the
/// adapter that they led to.
fn checkpoints(
    dir: &Path,
    manifest: &TrainingManifest,
    adapter: &Lora,
    base: &Model,
) -> anyhow::Result<Checkpoints> {
    let mut segments = Vec::with_capacity(manifest.checkpoints.len());
    for (at, &expected) in manifest.checkpoints.iter().enumerate() {
        let path = ol_train::segment_dir(dir, at);
        let segment = Lora::load(&path, base.config())
            .with_context(|| format!("the checkpoint {expected} of the training"))?;
        ensure!(
            segment.hash() == expected,
            "{} is {}, manifest.json says {expected}",
            path.display(),
            segment.hash()
        );
        segments.push(segment);
    }
    Ok(on_the_way(segments, adapter))
}

/// Adapters on the way, and where it led to.
fn on_the_way(segments: Vec<Lora>, adapter: &Lora) -> Checkpoints {
    let all = segments.into_iter().chain([adapter.clone()]);
    Checkpoints::new(all.map(Arc::new).collect())
}

/// Sketches records and writes what that gives, the description last.
fn sketch_all(
    base: &Base,
    adapter: &Lora,
    checkpoints: Checkpoints,
    inputs: &[RecordInput],
    mut description: Description,
    dir: &Path,
) -> anyhow::Result<()> {
    let progress = bar(inputs.len() as u64, &format!("sketch {}", description.name));
    // Gradients that are finished, for a run that goes on.
    let place = dir.join("gradients");
    let options = SketchOptions {
        checkpoints,
        place: description.place,
        ..SketchOptions::default()
    };
    let (sample, others) = fit_sample(inputs);
    let sketches = sketch_records(
        &base.model,
        &base.pool,
        adapter,
        &sample,
        &options,
        Some(&place),
        &mut |done| {
            progress.set_length(done.total);
            progress.set_position(done.done);
            progress.set_message(done.stage.name());
        },
    )?;
    let map = sketches.map.to_bytes();
    let sketcher = QuerySketcher::at(sketches.map, &base.model, adapter, &options.checkpoints)?;
    let mut index = sketches.index;
    if !others.is_empty() {
        let mut entries: Vec<_> = index.entries().map(|entry| entry.to_entry()).collect();
        progress.set_length(others.len() as u64);
        progress.set_position(0);
        progress.set_message("the other records");
        for input in others {
            entries.push(sketcher.sketch_record(&base.model, &base.pool, adapter, input)?);
            progress.inc(1);
        }
        index = Index::new(entries)?;
    }
    progress.finish();
    description.sketch_root = description.tier.root(&index)?;
    description.sketch_map_hash = keccak256(&map);
    description.null_threshold = threshold(base, adapter, &sketcher, &index, inputs)?;
    write(dir, "sketches.bin", index.as_bytes())?;
    write(dir, "sketch-map.bin", &map)?;
    write(dir, "model.json", &serde_json::to_vec_pretty(&description)?)?;
    fs::remove_dir_all(&place).with_context(|| place.display().to_string())
}

/// What a net must be above to be paid.
fn threshold(
    base: &Base,
    adapter: &Lora,
    sketcher: &QuerySketcher,
    index: &Index,
    inputs: &[RecordInput],
) -> anyhow::Result<u64> {
    let (model, pool) = (&base.model, &base.pool);
    let options = PlaceboOptions::default();
    let found = null_threshold(model, pool, adapter, sketcher, index, inputs, &options)?;
    Ok(found)
}

/// What a map is fitted on, and what is sketched under it.
fn fit_sample(inputs: &[RecordInput]) -> (Cow<'_, [RecordInput]>, Vec<&RecordInput>) {
    if inputs.len() <= FIT_RECORDS_MAX {
        return (inputs.into(), Vec::new());
    }
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    Random::new(FIT_SAMPLE_SEED).shuffle(&mut order);
    let (sample, others) = order.split_at_mut(FIT_RECORDS_MAX);
    sample.sort_unstable();
    others.sort_unstable();
    let sample: Vec<RecordInput> = sample.iter().map(|&at| inputs[at].clone()).collect();
    let others = others.iter().map(|&at| &inputs[at]).collect();
    (sample.into(), others)
}

fn write(dir: &Path, file: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = dir.join(file);
    write_atomic(&path, bytes).with_context(|| path.display().to_string())
}

/// Sketches the records of a trained model again, with its adapter as it is.
///
/// # Errors
/// If the folder is not of a model on this base, or its records are not here.
pub(crate) fn sketch_again(
    base: &Base,
    datanets: &Datanets,
    dir: &Path,
    place: Option<Place>,
) -> anyhow::Result<usize> {
    let mut description: Description =
        serde_json::from_slice(&read_limited(&dir.join("model.json"))?)
            .with_context(|| format!("{} is damaged", dir.join("model.json").display()))?;
    description.place = place.unwrap_or(description.place);
    let adapter = Lora::load(dir, base.model.config())?;
    let manifest = read_limited(&dir.join("manifest.json"))?;
    let found = (base.model.hash(), adapter.hash(), keccak256(&manifest));
    let expected = (
        description.base_hash,
        description.adapter_hash,
        description.manifest_hash,
    );
    ensure!(
        found == expected,
        "the base, adapter or manifest in {} is not the one that model.json names",
        dir.display()
    );
    let manifest = training_manifest_of(&manifest)?;
    let checkpoints = checkpoints(dir, &manifest, &adapter, &base.model)?;
    let inputs = trained_on(base, datanets, &manifest)?;
    sketch_all(base, &adapter, checkpoints, &inputs, description, dir)?;
    Ok(inputs.len())
}

/// Calibrates the null threshold of a model anew, its sketches as they are.
/// Returns the number of its records.
///
/// # Errors
/// As [`sketch_again`], and if a part of the model is damaged.
pub(crate) fn calibrate(base: &Base, datanets: &Datanets, dir: &Path) -> anyhow::Result<usize> {
    let model = TrainedModel::load(dir, &base.model)?;
    let inputs = trained_on(base, datanets, &model.manifest)?;
    let (adapter, at) = (&model.adapter, &model.checkpoints);
    let sketcher = QuerySketcher::at(model.map, &base.model, adapter, at)?;
    let description = Description {
        null_threshold: threshold(base, adapter, &sketcher, &model.index, &inputs)?,
        ..model.description
    };
    write(dir, "model.json", &serde_json::to_vec_pretty(&description)?)?;
    Ok(inputs.len())
}

/// All records of the datanet versions that a model was trained on.
pub(crate) fn records_of(
    datanets: &Datanets,
    manifest: &TrainingManifest,
) -> anyhow::Result<Vec<CommittedRecord>> {
    let mut records = Vec::new();
    for source in &manifest.datanets {
        records.extend(datanets.records(source.manifest)?);
    }
    Ok(records)
}

/// The records that a model was trained on.
fn trained_on(
    base: &Base,
    datanets: &Datanets,
    manifest: &TrainingManifest,
) -> anyhow::Result<Vec<RecordInput>> {
    let records = records_of(datanets, manifest)?;
    let trained: Vec<&CommittedRecord> = cluster_owners(&records)
        .into_iter()
        .filter(|record| !manifest.held_out_records.contains(&record.record_hash))
        .collect();
    record_inputs(base, &trained)
}

/// Sketches the records that the model's datanets have gained since it was
/// sketched, under the map that it has, and adds them to its index. Returns how
/// many there were.
///
/// # Errors
/// If a part of the model is damaged, or the index would be too large.
pub(crate) fn sketch_new(base: &Base, datanets: &Datanets, dir: &Path) -> anyhow::Result<usize> {
    let model = TrainedModel::load(dir, &base.model)?;
    let manifest = &model.manifest;
    let mut records = Vec::new();
    for source in &manifest.datanets {
        let Some(version) = datanets.head(&source.name)? else {
            bail!("datanet {} is not here", source.name);
        };
        records.extend(datanets.records(version)?);
    }
    let mut entries: Vec<_> = model
        .index
        .entries()
        .map(|entry| entry.to_entry())
        .collect();
    let known: BTreeSet<u32> = entries.iter().map(|entry| entry.cluster).collect();
    let new: Vec<&CommittedRecord> = cluster_owners(&records)
        .into_iter()
        .filter(|record| !known.contains(&record.cluster))
        .filter(|record| !manifest.held_out_records.contains(&record.record_hash))
        .collect();
    if new.is_empty() {
        return Ok(0);
    }
    let (adapter, at) = (&model.adapter, &model.checkpoints);
    let sketcher = QuerySketcher::at(model.map, &base.model, adapter, at)?;
    let progress = bar(
        new.len() as u64,
        &format!("sketch {}", model.description.name),
    );
    for input in record_inputs(base, &new)? {
        entries.push(sketcher.sketch_record(&base.model, &base.pool, &model.adapter, &input)?);
        progress.inc(1);
    }
    progress.finish();
    let index = Index::new(entries)?;
    let contributors: BTreeSet<_> = index.entries().map(|entry| entry.contributor()).collect();
    let tier = Tier::of(
        Some(model.description.tier),
        index.len(),
        contributors.len(),
    )?;
    let description = Description {
        sketch_root: tier.root(&index)?,
        ..model.description
    };
    write(dir, "sketches.bin", index.as_bytes())?;
    write(dir, "model.json", &serde_json::to_vec_pretty(&description)?)?;
    Ok(new.len())
}

/// Records as they are sketched.
pub(crate) fn record_inputs(
    base: &Base,
    records: &[&CommittedRecord],
) -> anyhow::Result<Vec<RecordInput>> {
    let input = |record: &&CommittedRecord| {
        let (tokens, answer_start) = base
            .tokenizer
            .record(&record.record.question, &record.record.answer)?;
        Ok(RecordInput {
            tokens,
            answer_start,
            hash: record.record_hash,
            contributor: record.contributor_address,
            cluster: record.cluster,
        })
    };
    records.iter().map(input).collect()
}

/// Keeps what a receipt is checked against where anyone finds it by hash.
///
/// # Errors
/// If the objects cannot be written.
pub(crate) fn publish_objects(model: &TrainedModel, objects: &Objects) -> anyhow::Result<()> {
    objects.put(model.manifest_bytes.clone())?;
    objects.put(model.map.to_bytes())?;
    // One that is on chain needs no object.
    if model.description.tier == Tier::Optimistic {
        objects.put(model.index.as_bytes().to_vec())?;
    }
    Ok(())
}

/// The finished model folders below `models`, by name.
///
/// # Errors
/// If the folder cannot be read.
pub(crate) fn model_folders(models: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !models.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(models).with_context(|| models.display().to_string())? {
        let path = entry?.path();
        if path.join("model.json").exists() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The folder of the model of that name, or of every model there is.
///
/// # Errors
/// If there is none, or the folders cannot be read.
pub(crate) fn chosen_folders(layout: &Layout, name: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    let folders = match name {
        Some(name) => vec![layout.model(name)],
        None => model_folders(&layout.models())?,
    };
    ensure!(
        !folders.is_empty(),
        "there is no model in {}; `openledger up` installs some",
        layout.root().display()
    );
    Ok(folders)
}

fn read_limited(path: &Path) -> anyhow::Result<Vec<u8>> {
    read_at_most(path, FILE_SIZE_BYTES_MAX)
}

fn read_at_most(path: &Path, most_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let size_bytes = fs::metadata(path)
        .with_context(|| path.display().to_string())?
        .len();
    ensure!(
        size_bytes <= most_bytes,
        "{} has {size_bytes} bytes, too many",
        path.display()
    );
    fs::read(path).with_context(|| path.display().to_string())
}

/// Draws the progress of a training run.
struct TrainingBar {
    bar: ProgressBar,
}

impl Observer<LoraObjective<'_>> for TrainingBar {
    fn on_step(&mut self, progress: &Progress) {
        self.bar.set_length(progress.steps.into());
        self.bar.set_position(progress.step.into());
        let mut message = format!(
            "loss {:.3} {:.0} tokens/s",
            progress.loss, progress.tokens_per_s
        );
        if let Some(held_out) = progress.held_out {
            message.push_str(&format!(" held out {held_out:.3}"));
        }
        // In a log file there is no bar: a line for each tenth of the work.
        if self.bar.is_hidden() && progress.step.is_multiple_of(progress.steps.div_ceil(10)) {
            let (step, steps, eta_s) = (progress.step, progress.steps, progress.eta_s);
            note(&format!(
                "{}: step {step} of {steps}, {message}, {eta_s:.0} s left",
                self.bar.prefix()
            ));
        }
        self.bar.set_message(message);
    }
}
