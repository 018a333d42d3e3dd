//! The other engines, each in a Python process that waits while we measure.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// One running peer.
pub(crate) struct Peer {
    /// Name and version.
    pub(crate) name: String,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `kind` of `benches/NAME/peer.py` on the model in `dir`, with the
    /// Python that `variable` names; says on stderr why it cannot be had.
    pub(crate) fn start(name: &str, variable: &str, kind: &str, dir: &Path) -> Option<Self> {
        let python = std::env::var(variable).unwrap_or_else(|_| "python3".to_owned());
        let benches = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("benches")
            .join(name);
        let absent = |reason: &str| {
            eprintln!(
                "{kind} is left out ({reason}): install {} and name that Python in {variable}",
                benches.join("requirements.txt").display()
            );
        };
        let started = Command::new(&python)
            .arg(benches.join("peer.py"))
            .args([kind.as_ref(), dir.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                absent(&format!("{python}: {error}"));
                return None;
            }
        };
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return None;
        };
        let mut peer = Self {
            name: String::new(),
            child,
            orders,
            answers: BufReader::new(answers),
        };
        let greeting = peer.line();
        if let Some(name) = greeting.strip_prefix("ready ") {
            peer.name = name.to_owned();
            return Some(peer);
        }
        absent(
            greeting
                .strip_prefix("absent ")
                .unwrap_or("it did not start"),
        );
        None
    }

    /// Has a work done; its seconds and tokens.
    pub(crate) fn ask(&mut self, order: &str) -> (f64, f64) {
        writeln!(self.orders, "{order}").expect("the peer reads its orders");
        let answer = self.line();
        let mut numbers = answer.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(seconds)), Some(Ok(count))) => (seconds, count),
            _ => panic!("{} failed at `{order}`: {answer}", self.name),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the peer writes UTF-8");
        line.trim_end().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Nobody is left to tell if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
