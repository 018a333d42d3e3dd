//! `openledger serve`: a base model and its adapters over the OpenAI API,
//! without chain and payments; computed here or by workers.

use std::fs;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ol_hub::{Hub, HubOptions, Reference};
use ol_model::{Format, GenerationConfig, Gguf, Model, ModelConfig, Pool, Tokenizer, WeightFormat};
use ol_retrieval::{CutRule, Embedder, Retriever};
use ol_runtime::{DataDir, Shutdown, SystemClock};
use ol_serve::{
    AdapterComponents, AdapterStore, AdapterStoreOptions, EngineHandle, EngineOptions, EngineParts,
    RegisterOptions,
};
use ol_server::SamplingDefaults;
use ol_server::api::{self, ApiState};
use ol_server::fleet::{self, Fleet, FleetOptions, WorkerOptions};
use ol_server::keys::{NewKey, Scope};
use ol_server::metrics::{Exporter, ServingObserver};
use ol_server::plain::{Plain, PlainOptions};
use ol_server::retrieval::Retrieval;
use ol_types::B256;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::assets;
use crate::cli::{ServeArgs, WorkersArgs};
use crate::command::datanet;
use crate::instance::Layout;
use crate::output::{Out, note};
use crate::secret::write_private;
use crate::signals::stop_signals;

/// How long running requests may take after the wish to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

/// Passages after which it is said again how many are embedded.
const EMBEDDED_TOLD: usize = 1_000;

/// Largest file of workers.
const WORKERS_FILE_SIZE_BYTES_MAX: u64 = 1 << 20;

pub(crate) fn run(
    layout: &Layout,
    args: &ServeArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let access = args.access.access(args.host.is_loopback())?;
    let workers = workers(&args.fleet)?;
    let format = weight_format(args)?;
    ensure!(
        workers.is_empty() || format.is_none(),
        "--weight-format says how this process holds weights, and with workers it holds none"
    );
    DataDir::open_or_create(layout.root())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // The port first: a taken one should not cost a minute of loading.
    let address = SocketAddr::new(args.host, args.port);
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .with_context(|| format!("could not listen on {address}; choose another --port"))?;
    let address = listener.local_addr()?;
    let exporter = Exporter::global()?;
    let (state, shutdown) = (ApiState::new(), Shutdown::new());
    runtime.spawn({
        let (exporter, shutdown) = (exporter.clone(), shutdown.clone());
        async move { exporter.upkeep(shutdown).await }
    });
    let routes = api::router(state.clone()).merge(exporter.router());
    // Who asks in the meantime is told that the server is starting.
    let serving = api::serve_routes(routes, access, listener, shutdown.clone());
    let server = runtime.spawn(serving);

    let base = find_base(layout, args.base.as_deref())?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => base_name(args.base.as_deref(), &base),
    };
    let mut options = PlainOptions {
        sampling_defaults: sampling_defaults(&args.generation_config, &base)?,
        is_open: args.open,
        loads_on_demand: !args.adapter_root.is_empty(),
        ..PlainOptions::new(layout.serve(), &name)
    };
    let clock = Arc::new(SystemClock::new());
    let n_workers = workers.len();
    let plain = if workers.is_empty() {
        let engine = start_engine(&base, args, format)?;
        let base_model = (Arc::clone(engine.base()), Arc::clone(engine.tokenizer()));
        options.retrieval = retrieval(layout, args, Some(base_model))?;
        let adapters = adapters(layout, args, engine.base().config(), &clock)?;
        Plain::new(options, engine, adapters, clock)?
    } else {
        let (config, tokenizer) = read_base(&base)?;
        let adapters = adapters(layout, args, &config, &clock)?;
        options.retrieval = retrieval(layout, args, None)?;
        let fleet = start_fleet(&runtime, layout, &config, tokenizer, workers, args)?;
        Plain::new(options, fleet, adapters, clock)?
    };
    admin_key(layout, &plain)?;
    state.set_ready(plain.clone());

    let stop = runtime.block_on(async { stop_signals() })?;
    let n_adapters = plain.adapters().names().len();
    let api = format!("http://{address}");
    if json {
        let ready = json!({
            "ready": true,
            "api": format!("{api}/v1"),
            "model": name,
            "n_adapters": n_adapters,
            "n_workers": n_workers,
            "admin_key_file": layout.serve_admin_key(),
            "pid": std::process::id(),
        });
        writeln!(out, "{ready}")?;
    } else {
        let who = match n_workers {
            0 => String::new(),
            n => format!("  workers {n}"),
        };
        writeln!(
            out,
            "ready  api {api}/v1  model {name}  adapters {n_adapters}{who}"
        )?;
    }
    out.flush()?;
    if args.open {
        note("Anybody who reaches this address may ask (--open).");
    } else {
        note(&format!(
            "Key for asking and for operators: {}   Stop: Ctrl-C",
            layout.serve_admin_key().display()
        ));
    }
    runtime.block_on(stop);

    note("stopping: running requests are finished");
    runtime.block_on(async {
        // `/health` says `stopping` meanwhile, so that a gateway sends no more.
        if tokio::time::timeout(DRAIN_TIMEOUT, plain.shutdown())
            .await
            .is_err()
        {
            note("requests still run after two minutes; they are cut off");
        }
        shutdown.trigger();
        let _ = tokio::time::timeout(Duration::from_secs(5), server).await;
    });
    Ok(())
}

/// The workers that flags and file name.
pub(crate) fn workers(args: &WorkersArgs) -> anyhow::Result<Vec<WorkerOptions>> {
    let mut workers = Vec::new();
    for flag in &args.worker {
        workers.push(WorkerOptions::from_flag(flag)?);
    }
    if let Some(path) = &args.workers {
        let context = || format!("the workers of {}", path.display());
        let size_bytes = fs::metadata(path).with_context(context)?.len();
        ensure!(
            size_bytes <= WORKERS_FILE_SIZE_BYTES_MAX,
            "{} is larger than a mebibyte",
            path.display()
        );
        let text = fs::read_to_string(path).with_context(context)?;
        workers.extend(fleet::workers_from_toml(&text).with_context(context)?);
    }
    Ok(workers)
}

fn weight_format(args: &ServeArgs) -> anyhow::Result<Option<WeightFormat>> {
    let Some(name) = &args.weight_format else {
        return Ok(None);
    };
    Ok(Some(match name.to_ascii_lowercase().as_str() {
        "f32" => WeightFormat::F32,
        "stored" => WeightFormat::Stored,
        name => match Format::from_name(name) {
            Some(format) => WeightFormat::Quantised(format),
            None => {
                let known = Format::ALL.map(|format| format.name().to_ascii_lowercase());
                bail!(
                    "--weight-format {name} is not known; give f32, stored, {}",
                    known.join(", ")
                );
            }
        },
    }))
}

/// The base model's folder or file: given, fetched from the hub, or the one that
/// comes with the program.
fn find_base(layout: &Layout, given: Option<&str>) -> anyhow::Result<PathBuf> {
    let Some(given) = given else {
        assets::install_base(&layout.base())?;
        return Ok(layout.base());
    };
    let path = PathBuf::from(given);
    if path.exists() {
        return Ok(path);
    }
    let looks_like_id = given.split('/').count() == 2 && !given.starts_with(['.', '/', '~']);
    ensure!(
        looks_like_id,
        "there is no {given}; --base takes a folder, a GGUF file, or a model of the hub as \
         OWNER/NAME"
    );
    let hub = Hub::new(HubOptions::from_env(|name| std::env::var(name).ok())?)?;
    let reference = Reference::new(given, "main", None)?;
    let mut file = String::new();
    let snapshot = hub.fetch(&reference, &mut |progress| {
        if progress.file != file {
            file.clone_from(&progress.file);
            let (done, total) = (progress.done_bytes >> 20, progress.total_bytes >> 20);
            note(&format!("{given}: {file}, {done} of {total} MiB are here"));
        }
        ControlFlow::Continue(())
    })?;
    Ok(snapshot.gguf.unwrap_or(snapshot.dir))
}

/// How answers are drawn when a request does not say.
fn sampling_defaults(given: &str, base: &Path) -> anyhow::Result<SamplingDefaults> {
    let dir = match given {
        "none" => return Ok(SamplingDefaults::default()),
        "auto" => base,
        dir => Path::new(dir),
    };
    ensure!(
        dir.exists(),
        "--generation-config {given}: there is no such folder"
    );
    let hint = "give --generation-config none to leave it out";
    let config = GenerationConfig::load(dir).context(hint)?;
    let found = SamplingDefaults::recommended(&config)
        .with_context(|| format!("what {} recommends", dir.display()))
        .context(hint)?;
    if found != SamplingDefaults::default() {
        note(&format!(
            "requests that do not say have the model's {found} (--generation-config)"
        ));
    }
    Ok(found)
}

fn base_name(given: Option<&str>, base: &Path) -> String {
    match given {
        None => "openledger-base".to_owned(),
        // The hub's ids are names as they are.
        Some(given) if !Path::new(given).exists() => given.to_owned(),
        Some(_) => {
            let stem = base.file_stem().unwrap_or(base.as_os_str());
            stem.to_string_lossy().into_owned()
        }
    }
}

fn start_engine(
    base: &Path,
    args: &ServeArgs,
    format: Option<WeightFormat>,
) -> anyhow::Result<EngineHandle> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = args.threads.unwrap_or(cores).max(1);
    note(&format!("loading {}", base.display()));
    let model = match format {
        Some(format) => Model::load_as(&Pool::new(n_threads), base, format),
        None => Model::load(base),
    };
    let model = model.with_context(|| format!("the base model {}", base.display()))?;
    let tokenizer = Tokenizer::load(base).context("the tokenizer of the base model")?;
    let options = EngineOptions {
        n_rows_max: args.max_running,
        n_kv_tokens_max: args.kv_tokens,
        n_waiting_max: args.max_waiting,
        ..EngineOptions::default()
    };
    let model = Arc::new(model);
    let executor = crate::device::executor(args.device, &model, n_threads, &options)?;
    let parts = EngineParts {
        observer: Arc::new(ServingObserver),
        ..EngineParts::on(executor, model, Arc::new(tokenizer))
    };
    Ok(EngineHandle::start_with(parts, options)?)
}

/// What a gateway needs of a base model: no weights.
fn read_base(base: &Path) -> anyhow::Result<(ModelConfig, Arc<Tokenizer>)> {
    let tokenizer = Tokenizer::load(base).context("the tokenizer of the base model")?;
    let config = if base.is_file() {
        Gguf::open(base)?.config()?
    } else {
        let path = base.join("config.json");
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        ModelConfig::from_json(&text).with_context(|| path.display().to_string())?
    };
    Ok((config, Arc::new(tokenizer)))
}

fn start_fleet(
    runtime: &Runtime,
    layout: &Layout,
    config: &ModelConfig,
    tokenizer: Arc<Tokenizer>,
    workers: Vec<WorkerOptions>,
    args: &ServeArgs,
) -> anyhow::Result<Fleet> {
    let sizes = (config.vocab_size, config.max_position_embeddings);
    let dir = layout.published_adapters();
    let options = FleetOptions {
        n_waiting_max: args.max_waiting,
        // Nobody is paid here, so nobody asks which weights there are.
        ..FleetOptions::new(workers, B256::ZERO, tokenizer, sizes, dir)
    };
    let fleet = runtime.block_on(Fleet::start(options, Arc::new(SystemClock::new())))?;
    for worker in fleet.status() {
        if let Some(error) = worker.last_error {
            note(&format!("worker {} is not there yet: {error}", worker.name));
        }
    }
    Ok(fleet)
}

/// The datanets that flags name, indexed.
fn retrieval(
    layout: &Layout,
    args: &ServeArgs,
    base: Option<(Arc<Model>, Arc<Tokenizer>)>,
) -> anyhow::Result<Retrieval> {
    if args.datanet.is_empty() {
        return Ok(Retrieval::default());
    }
    let n_threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let embedder = match (&args.embedding_model, base) {
        (None, _) => None,
        (Some(path), Some((model, tokenizer))) if path == Path::new("base") => {
            Some(Embedder::of_language_model(model, tokenizer, n_threads))
        }
        (Some(path), None) if path == Path::new("base") => {
            bail!(
                "with workers the base model is not in this process: give --embedding-model a folder"
            )
        }
        (Some(path), _) => Some(
            Embedder::load(path, n_threads)
                .with_context(|| format!("--embedding-model {}", path.display()))?,
        ),
    };
    let embedder = embedder.map(Arc::new);
    let datanets = datanet::open(&DataDir::open_or_create(layout.root())?)?;
    let rule = CutRule {
        words_max: args.passage_words,
    };
    let mut retrievers = Vec::new();
    for name in &args.datanet {
        let head = datanets.head(name)?;
        let version = head.with_context(|| format!("datanet {name} has no records yet"))?;
        let mut retriever = Retriever::new(name, version, &datanets.records(version)?, rule)?;
        let n_passages = retriever.passages().len();
        if let Some(embedder) = &embedder {
            let dir = layout.serve().join("embeddings");
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            let file = dir.join(name);
            let mut told = 0;
            retriever = retriever.with_embeddings(Arc::clone(embedder), Some(&file), &mut |n| {
                if n >= told + EMBEDDED_TOLD || n == n_passages {
                    told = n;
                    note(&format!(
                        "{name}: {n} of {n_passages} passages are embedded"
                    ));
                }
            })?;
        }
        let method = retriever.default_method().name();
        note(&format!("{name}: {n_passages} passages, {method}"));
        retrievers.push(retriever);
    }
    Ok(Retrieval::new(retrievers))
}

/// The store with the adapters that flags name; those below a root come when
/// they are asked for.
fn adapters(
    layout: &Layout,
    args: &ServeArgs,
    model: &ModelConfig,
    clock: &Arc<SystemClock>,
) -> anyhow::Result<AdapterStore> {
    let mut named = Vec::new();
    let mut roots = args.adapter_root.clone();
    for root in roots.iter().filter(|root| !root.exists()) {
        // A worker may start before the gateway that fills the folder.
        fs::create_dir_all(root).with_context(|| format!("--adapter-root {}", root.display()))?;
        note(&format!("made the folder {}", root.display()));
    }
    for given in &args.adapter {
        let (name, path) = given
            .split_once('=')
            .with_context(|| format!("--adapter {given} is not NAME=PATH"))?;
        if path.contains("://") {
            // Whether it is below a store is for the registration to say.
            named.push((name, path.to_owned()));
            continue;
        }
        let path = fs::canonicalize(path).with_context(|| format!("--adapter {given}"))?;
        named.push((name, path.to_string_lossy().into_owned()));
        // What was named once may be loaded again.
        roots.push(path);
    }
    let options = AdapterStoreOptions {
        host_budget_bytes: args.adapter_memory_mib << 20,
        dir: Some(layout.serve().join("adapters")),
        roots,
        ..AdapterStoreOptions::default()
    };
    let mut components = AdapterComponents::new(Arc::clone(clock) as _);
    for url in &args.adapter_store {
        let store = ol_hub::open_store(url, std::env::vars()).context("--adapter-store")?;
        components.stores.insert(url.clone(), store);
    }
    let store = AdapterStore::open(model, options, components)?;
    for (name, location) in named {
        store
            .register(name, &location, RegisterOptions::default())
            .with_context(|| format!("adapter {name} of {location}"))?;
    }
    Ok(store)
}

/// The operator's key, made at the first start; it may ask, too.
fn admin_key(layout: &Layout, plain: &Plain) -> anyhow::Result<String> {
    let path = layout.serve_admin_key();
    if let Ok(key) = fs::read_to_string(&path) {
        let key = key.trim().to_owned();
        if plain.keys().find(&key).is_some() {
            return Ok(key);
        }
    }
    let key = plain.keys().add(NewKey {
        account: None,
        label: "operator".to_owned(),
        scopes: vec![Scope::Infer, Scope::Admin],
        limits: Default::default(),
    })?;
    write_private(&path, key.expose()).with_context(|| path.display().to_string())?;
    Ok(key.expose().to_owned())
}
