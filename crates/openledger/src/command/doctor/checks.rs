//! The checks. Each looks at one thing, changes nothing, and says what to do.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use ol_node::inspect::{Depth, inspect};
use ol_runtime::{Clock as _, DataDir, DirLock, LockError, SystemClock};
use serde_json::json;

use super::Finding;
use crate::cli::DoctorArgs;
use crate::instance::{Instance, Layout};
use crate::rpc::{Rpc, quantity};
use crate::secret::{open_private, read_signer};

const GIB: u64 = 1 << 30;

/// Below this a node will soon stop.
const DISK_MIN_BYTES: u64 = GIB;

/// Below this somebody should look for more.
const DISK_LOW_BYTES: u64 = 10 * GIB;

/// Memory that a node should have, in all.
const MEMORY_LOW_BYTES: u64 = 2 * GIB;

/// File handles for connections and files.
const FILES_LOW: u64 = 1_024;

/// No clock shows less: this was written later.
const EARLIEST_S: u64 = 1_760_000_000;

/// How far a clock may be behind the newest block. Block times are our own
/// clock's, so it has been set back if it is behind.
const CLOCK_BEHIND_MAX_S: u64 = 15;

pub(super) fn all(layout: &Layout, args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = vec![folder(layout)];
    let instance = Instance::find(layout).ok();
    findings.push(lock(layout, instance.as_ref()));
    findings.push(disk(layout.root()));
    let (database, head_s) = match &instance {
        Some(instance) => running(instance),
        None => database(layout, args.full),
    };
    findings.push(database);
    findings.push(clock(head_s));
    if instance.is_none() {
        let addr = SocketAddr::new(args.http_addr, args.port);
        findings.push(port(addr));
    }
    findings.push(secrets(layout, &args.key_files));
    findings.push(memory());
    findings.push(files());
    findings.push(cpu());
    findings.push(gpu());
    findings
}

/// What the GPU code finds. None is fine: the CPU engine does everything.
#[cfg(feature = "cuda")]
fn gpu() -> Finding {
    const CHECK: &str = "gpu";
    match ol_cuda::devices() {
        Ok(devices) => {
            let shown: Vec<String> = devices
                .iter()
                .map(|d| {
                    let (major, minor) = d.capability;
                    let memory_gib = d.memory_bytes >> 30;
                    format!("{} ({memory_gib} GiB, compute {major}.{minor})", d.name)
                })
                .collect();
            Finding::ok(CHECK, format!("{}: {}", devices.len(), shown.join(", ")))
        }
        Err(ol_cuda::GpuError::Absent(reason)) => {
            Finding::ok(CHECK, format!("none, the CPU does the work ({reason})"))
        }
        Err(error) => Finding::warn(
            CHECK,
            error.to_string(),
            "models run on the CPU; `nvidia-smi` tells what is wrong with the driver",
        ),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Finding {
    Finding::ok(
        "gpu",
        "built without the feature `cuda`, the CPU does the work",
    )
}

fn folder(layout: &Layout) -> Finding {
    const CHECK: &str = "folder";
    let root = layout.root();
    let shown = root.display();
    if fs::read_dir(root).map_or(!root.exists(), |mut entries| entries.next().is_none()) {
        return Finding::warn(
            CHECK,
            format!("{shown} holds nothing"),
            "nothing has run here yet; `openledger up` or `openledger node run` makes it",
        );
    }
    match DataDir::open_or_create(root) {
        Ok(_) => Finding::ok(CHECK, format!("{shown}, format known, writable")),
        Err(error) => Finding::fail(
            CHECK,
            error.to_string(),
            "name another folder with --datadir, or use the version that made it",
        ),
    }
}

fn lock(layout: &Layout, instance: Option<&Instance>) -> Finding {
    const CHECK: &str = "lock";
    if let Some(instance) = instance {
        return Finding::ok(
            CHECK,
            format!(
                "an instance runs: process {}, {}",
                instance.pid, instance.rpc
            ),
        );
    }
    if !layout.root().exists() {
        return Finding::ok(CHECK, "nobody has the folder");
    }
    match DirLock::acquire(layout.root()) {
        Ok(_) => Finding::ok(CHECK, "nobody has the folder"),
        Err(LockError::InUse { .. }) => Finding::warn(
            CHECK,
            "a process has the folder and does not say where it listens",
            "it is starting, or another command is running; try again when it is done",
        ),
        Err(error) => Finding::fail(CHECK, format!("{error:#}"), "make the folder writable"),
    }
}

fn disk(root: &Path) -> Finding {
    const CHECK: &str = "disk";
    // The folder itself may not be there yet.
    let existing = root.ancestors().find(|path| path.exists());
    let found = existing.and_then(|path| rustix::fs::statvfs(path).ok());
    let Some(found) = found else {
        return Finding::warn(
            CHECK,
            "the free space is not known",
            "look at it with `df`; a node stops when the disk is full",
        );
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} GiB free", free / GIB);
    if free < DISK_MIN_BYTES {
        Finding::fail(CHECK, text, "make room: a node stops when the disk is full")
    } else if free < DISK_LOW_BYTES {
        Finding::warn(CHECK, text, "make room before it is full")
    } else {
        Finding::ok(CHECK, text)
    }
}

/// Asks the running node, which alone may open the database.
fn running(instance: &Instance) -> (Finding, Option<u64>) {
    const CHECK: &str = "node";
    let rpc = Rpc::new(&instance.rpc);
    let head = rpc.request("eth_getBlockByNumber", &json!(["latest", false]));
    let head =
        head.and_then(|head| Ok((quantity(&head["number"])?, quantity(&head["timestamp"])?)));
    match head {
        Ok((number, timestamp_s)) => (
            Finding::ok(CHECK, format!("answers, newest block {number}")),
            Some(timestamp_s),
        ),
        Err(error) => (
            Finding::fail(
                CHECK,
                format!("does not answer: {error:#}"),
                format!(
                    "look at its log, or stop process {} and start it again",
                    instance.pid
                ),
            ),
            None,
        ),
    }
}

fn database(layout: &Layout, is_full: bool) -> (Finding, Option<u64>) {
    const CHECK: &str = "database";
    if !layout.chain().exists() {
        return (Finding::ok(CHECK, "there is no chain yet"), None);
    }
    let depth = if is_full { Depth::Full } else { Depth::Quick };
    match inspect(&layout.chain(), depth) {
        Ok(found) => {
            let text = format!(
                "chain {}, format {}, newest block {}, {} MiB, {}",
                found.chain_id,
                found.format_version,
                found.head_number,
                found.size_bytes >> 20,
                if is_full {
                    "every block and the whole state verified".to_owned()
                } else {
                    format!("the last {} blocks verified", found.n_blocks_checked)
                }
            );
            (Finding::ok(CHECK, text), Some(found.head_timestamp_s))
        }
        Err(error) => (
            Finding::fail(
                CHECK,
                format!("{:#}", anyhow::Error::from(error)),
                "stop what uses it; if it is damaged, restore a copy or follow another node from genesis",
            ),
            None,
        ),
    }
}

fn clock(head_s: Option<u64>) -> Finding {
    const CHECK: &str = "clock";
    let now_s = SystemClock::new().unix_s();
    let advice = "set the machine's clock, and keep it with NTP";
    if now_s < EARLIEST_S {
        return Finding::fail(CHECK, format!("shows {now_s} s since 1970"), advice);
    }
    match head_s {
        Some(head_s) if now_s.saturating_add(CLOCK_BEHIND_MAX_S) < head_s => Finding::fail(
            CHECK,
            format!("is {} s behind the newest block", head_s - now_s),
            advice,
        ),
        _ => Finding::ok(
            CHECK,
            format!("shows {now_s} s since 1970, not behind the chain"),
        ),
    }
}

fn port(addr: SocketAddr) -> Finding {
    const CHECK: &str = "port";
    match TcpListener::bind(addr) {
        Ok(_) => Finding::ok(CHECK, format!("{addr} is free")),
        Err(error) => Finding::fail(
            CHECK,
            format!("{addr} cannot be listened on: {error}"),
            "give another with --port, or stop the program that has it",
        ),
    }
}

/// Files with secrets: those of the folder, and those that were named.
fn secrets(layout: &Layout, named: &[PathBuf]) -> Finding {
    const CHECK: &str = "key files";
    let api_key = Some(layout.dev_api_key()).filter(|path| path.exists());
    let api_key = api_key.iter().map(|path| open_private(path).err());
    let signers = named.iter().map(|path| read_signer(path, true).err());
    let checked: Vec<_> = api_key.chain(signers).collect();
    let n_paths = checked.len();
    let faults: Vec<String> = checked
        .into_iter()
        .flatten()
        .map(|fault| format!("{fault:#}"))
        .collect();
    if faults.is_empty() {
        Finding::ok(
            CHECK,
            format!("{n_paths} found, readable by their owner alone"),
        )
    } else {
        let advice = "take the rights of others away; then make new keys, the old may be known";
        Finding::fail(CHECK, faults.join("; "), advice)
    }
}

fn memory() -> Finding {
    const CHECK: &str = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let (Some(total), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) else {
        return Finding::ok(CHECK, "not known on this system");
    };
    let found = format!(
        "{} MiB, {} MiB of it available",
        total >> 10,
        available >> 10
    );
    if total.saturating_mul(1_024) < MEMORY_LOW_BYTES {
        Finding::warn(
            CHECK,
            found,
            "2 GiB are enough for a chain, models take more",
        )
    } else {
        Finding::ok(CHECK, found)
    }
}

fn files() -> Finding {
    const CHECK: &str = "file handles";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(n_max) if n_max < FILES_LOW => Finding::warn(
            CHECK,
            format!("{n_max} at most"),
            "raise the limit (`ulimit -n 4096`): every connection takes one",
        ),
        Some(n_max) => Finding::ok(CHECK, format!("{n_max} at most")),
        None => Finding::ok(CHECK, "no limit"),
    }
}

fn cpu() -> Finding {
    const CHECK: &str = "cpu";
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, is_there) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ] {
        if is_there {
            features.push(name);
        }
    }
    let arch = std::env::consts::ARCH;
    let found = format!("{n_cores} cores, {arch} {}", features.join(" "));
    if arch == "x86_64" && !features.contains(&"avx2") {
        Finding::warn(
            CHECK,
            found,
            "the chain runs; models run slowly without AVX2",
        )
    } else {
        Finding::ok(CHECK, found.trim_end().to_owned())
    }
}
