//! Are the numbers that end in money the same on every machine?
//!
//! `sketch-digest` of `ol-attribution` computes random cases from tokens to
//! shares. It runs here, with every instruction set of this CPU, and under
//! qemu's user mode on two other architectures; all must print one digest.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Done;

/// Cases of a nightly run.
pub(crate) const CASES: &str = "100000";

/// Another architecture, and what it takes to build for it and run there.
struct Machine {
    target: &'static str,
    /// The variable by which cargo is told the linker, and the linker.
    linker: (&'static str, &'static str),
    rust_flags: &'static str,
    /// Names of the emulator, the first that is found is used.
    emulators: [&'static str; 2],
}

const MACHINES: [Machine; 2] = [
    Machine {
        target: "aarch64-unknown-linux-musl",
        linker: ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld"),
        rust_flags: "-Clink-self-contained=yes",
        emulators: ["qemu-aarch64-static", "qemu-aarch64"],
    },
    Machine {
        target: "riscv64gc-unknown-linux-gnu",
        linker: (
            "CARGO_TARGET_RISCV64GC_UNKNOWN_LINUX_GNU_LINKER",
            "riscv64-linux-gnu-gcc",
        ),
        rust_flags: "-Ctarget-feature=+crt-static",
        emulators: ["qemu-riscv64-static", "qemu-riscv64"],
    },
];

const BUILD: [&str; 8] = [
    "build",
    "--release",
    "--quiet",
    "--locked",
    "-p",
    "ol-attribution",
    "--bin",
    "sketch-digest",
];

/// Compares the digests of `cases` random cases.
pub(crate) fn run(root: &Path, cases: &str) -> Done {
    let mut run_here = Command::new("cargo");
    run_here
        .args(["run"])
        .args(&BUILD[1..])
        .args(["--", cases])
        .current_dir(root);
    let mut digests = digests(&mut run_here)?;
    for machine in &MACHINES {
        match machine.missing() {
            Some(missing) => println!("{}: skipped, {missing}", machine.target),
            None => digests.extend(machine.digests(root, cases)?),
        }
    }
    match digests.len() {
        1 => Ok(()),
        n => Err(format!(
            "{n} digests, where all machines must print the same"
        )),
    }
}

impl Machine {
    /// What this machine cannot be tried without, in words.
    fn missing(&self) -> Option<String> {
        let target = self.target;
        let installed = text("rustup", &["target", "list", "--installed"]);
        if !installed.lines().any(|line| line == target) {
            return Some(format!("needs `rustup target add {target}`"));
        }
        let linker = self.linker.1;
        if linker != "rust-lld" && text(linker, &["--version"]).is_empty() {
            return Some(format!("needs {linker}"));
        }
        let emulator = self.emulators[0];
        self.emulator()
            .is_none()
            .then(|| format!("needs {emulator} (Debian: qemu-user-static)"))
    }

    fn emulator(&self) -> Option<&'static str> {
        let works = |name: &&&str| !text(name, &["--version"]).is_empty();
        self.emulators.iter().find(works).copied()
    }

    fn digests(&self, root: &Path, cases: &str) -> Result<BTreeSet<String>, String> {
        let folder = text("cargo", &["metadata", "--no-deps", "--format-version=1"]);
        let folder = folder
            .split_once("\"target_directory\":\"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .map(|(folder, _)| folder.to_owned())
            .ok_or("cargo does not say where it builds")?;
        let status = Command::new("cargo")
            .args(BUILD)
            .args(["--target", self.target])
            .env(self.linker.0, self.linker.1)
            .env("RUSTFLAGS", self.rust_flags)
            .current_dir(root)
            .status()
            .map_err(|error| format!("could not start cargo: {error}"))?;
        if !status.success() {
            return Err(format!("{} does not build ({status})", self.target));
        }
        let program = format!("{folder}/{}/release/sketch-digest", self.target);
        let emulator = self.emulator().ok_or("the emulator is gone")?;
        digests(Command::new(emulator).args([&program, cases]))
    }
}

/// Runs the program, shows what it prints, and returns the last words.
fn digests(command: &mut Command) -> Result<BTreeSet<String>, String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("could not start {command:?}: {error}"))?;
    let lines = String::from_utf8_lossy(&output.stdout);
    print!("{lines}");
    if !output.status.success() {
        return Err(format!("{command:?} failed ({})", output.status));
    }
    let last_word = |line: &str| line.split_whitespace().last().map(str::to_owned);
    Ok(lines.lines().filter_map(last_word).collect())
}

/// What a program prints; nothing if it cannot be run.
fn text(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let printed = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&printed).into_owned()
}
