//! Rules about the tree that the compiler does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::Done;

/// Which of our crates each crate may depend on. Chain crates (`ol-evm`,
/// `ol-node`) and model crates (`ol-model`, `ol-train`, `ol-serve`) never see
/// each other. An edge that is not here needs a reason in ARCHITECTURE.md.
const EDGES: &[(&str, &[&str])] = &[
    ("ol-types", &[]),
    ("ol-poa", &[]),
    ("ol-runtime", &["ol-types"]),
    ("ol-contracts", &["ol-poa", "ol-types"]),
    ("ol-evm", &["ol-poa", "ol-types", "ol-contracts"]),
    (
        "ol-node",
        &["ol-evm", "ol-contracts", "ol-runtime", "ol-types"],
    ),
    // Tests only: nothing may depend on it.
    ("ol-conformance", &["ol-evm", "ol-node", "ol-runtime"]),
    ("ol-datanet", &["ol-poa", "ol-runtime", "ol-types"]),
    ("ol-hub", &[]),
    ("ol-model", &["ol-types"]),
    ("ol-cuda", &["ol-model", "ol-types"]),
    ("ol-train", &["ol-model", "ol-runtime", "ol-types"]),
    ("ol-attribution", &["ol-model", "ol-poa", "ol-types"]),
    // Apart from ol-attribution: no model and no floats, but a builder in C and
    // files; a watcher needs only this.
    ("ol-spans", &["ol-poa", "ol-runtime", "ol-types"]),
    // Reads records, embeds them by a model, and scores in ol-poa's integers.
    (
        "ol-retrieval",
        &["ol-datanet", "ol-model", "ol-poa", "ol-types"],
    ),
    ("ol-serve", &["ol-model", "ol-runtime", "ol-types"]),
    (
        "ol-server",
        &[
            "ol-attribution",
            "ol-contracts",
            "ol-evm",
            "ol-model",
            "ol-node",
            "ol-poa",
            "ol-retrieval",
            "ol-runtime",
            "ol-serve",
            "ol-spans",
            "ol-types",
        ],
    ),
    (
        "ol-fuzz",
        &[
            "ol-contracts",
            "ol-evm",
            "ol-model",
            "ol-node",
            "ol-poa",
            "ol-runtime",
            "ol-server",
            "ol-spans",
        ],
    ),
    (
        "openledger",
        &[
            "ol-attribution",
            "ol-contracts",
            "ol-cuda",
            "ol-datanet",
            "ol-evm",
            "ol-hub",
            "ol-model",
            "ol-node",
            "ol-poa",
            "ol-retrieval",
            "ol-runtime",
            "ol-serve",
            "ol-server",
            "ol-spans",
            "ol-train",
            "ol-types",
        ],
    ),
];

/// Crates that alone may speak HTTP.
const HTTP_CRATES: &[&str] = &["ol-hub", "ol-server", "openledger"];
const HTTP_DEPENDENCIES: &[&str] = &[
    "axum",
    "jsonrpsee",
    "jsonrpsee-ws-client",
    "ureq",
    "hyper",
    "reqwest",
];

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

/// Checks the tree and lists everything that is wrong with it.
pub(crate) fn check(root: &Path) -> Done {
    let mut faults = Vec::new();
    check_edges(root, &mut faults)?;
    let sources = sources(root)?;
    check_sources(root, &sources, &mut faults)?;
    check_invariants(root, &sources, &mut faults)?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} faults\n  {}",
        faults.len(),
        faults.join("\n  ")
    ))
}

fn check_edges(root: &Path, faults: &mut Vec<String>) -> Done {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for entry in read_dir(&root.join("crates"))? {
        let name = entry
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some(edges) = allowed.get(name.as_str()) else {
            faults.push(format!("crate {name} is not in the table of edges"));
            continue;
        };
        let manifest = read(&entry.join("Cargo.toml"))?;
        let mut in_dependencies = false;
        for line in manifest.lines().map(str::trim) {
            if line.starts_with('[') {
                in_dependencies = line == "[dependencies]";
                continue;
            }
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if !in_dependencies || dependency.is_empty() {
                continue;
            }
            if dependency.starts_with("ol-") && !edges.contains(&dependency) {
                faults.push(format!("{name} must not depend on {dependency}"));
            }
            if HTTP_DEPENDENCIES.contains(&dependency) && !HTTP_CRATES.contains(&name.as_str()) {
                faults.push(format!("{name} must not know HTTP ({dependency})"));
            }
        }
    }
    Ok(())
}

fn check_sources(root: &Path, sources: &[PathBuf], faults: &mut Vec<String>) -> Done {
    // Split so that this file does not find itself.
    let left_open = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
    ];
    for path in sources {
        let text = read(path)?;
        let shown = path.strip_prefix(root).unwrap_or(path).display();
        let n_lines = text.lines().count();
        if n_lines > FILE_LINES_MAX {
            faults.push(format!(
                "{shown}: {n_lines} lines, split it (limit {FILE_LINES_MAX})"
            ));
        }
        for (index, line) in text.lines().enumerate() {
            if let Some(word) = left_open.iter().find(|word| line.contains(**word)) {
                faults.push(format!("{shown}:{}: `{word}` left in code", index + 1));
            }
        }
        if path.ends_with("src/lib.rs") && !text.starts_with("//!") {
            faults.push(format!("{shown}: must open with what the crate owns"));
        }
    }
    Ok(())
}

/// Every invariant row of ARCHITECTURE.md names tests that exist.
fn check_invariants(root: &Path, sources: &[PathBuf], faults: &mut Vec<String>) -> Done {
    let mut functions = BTreeSet::new();
    for path in sources {
        for line in read(path)?.lines() {
            let line = line.trim_start();
            let rest = line
                .strip_prefix("async fn ")
                .or_else(|| line.strip_prefix("fn "));
            let rest = rest.or_else(|| line.strip_prefix("function "));
            if let Some(name) = rest.and_then(|rest| rest.split(['(', '<']).next()) {
                functions.insert(name.to_owned());
            }
        }
    }
    let map = read(&root.join("ARCHITECTURE.md"))?;
    let rows = map.lines().filter(|line| line.starts_with("| I"));
    let mut n_rows = 0;
    for row in rows {
        n_rows += 1;
        let held_by = row
            .trim_end_matches([' ', '|'])
            .rsplit('|')
            .next()
            .unwrap_or_default();
        let tests: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            faults.push(format!(
                "ARCHITECTURE.md: an invariant names no test: {row}"
            ));
        }
        for test in tests {
            let name = test.rsplit("::").next().unwrap_or(test);
            if !functions.contains(name) {
                faults.push(format!("ARCHITECTURE.md: no test is called `{test}`"));
            }
        }
    }
    if n_rows == 0 {
        faults.push("ARCHITECTURE.md: no invariant found".into());
    }
    Ok(())
}

/// Every Rust and Solidity file of ours.
fn sources(root: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![
        root.join("crates"),
        root.join("xtask"),
        root.join("contracts"),
    ];
    while let Some(folder) = folders.pop() {
        for path in read_dir(&folder)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if !["node_modules", "out", "cache", "target"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") || name.ends_with(".sol") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read_dir(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
