//! The other engines, each in a Python process that waits while we measure.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// How long a peer may take to start, or for one work.
const PATIENCE: Duration = Duration::from_secs(300);

/// One running peer.
pub(crate) struct Peer {
    /// Name and version.
    pub(crate) name: String,
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
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
        let (sender, lines) = channel();
        // It ends with the peer's output, at the latest when `Drop` ends the peer.
        thread::spawn(move || {
            for line in BufReader::new(answers).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut peer = Self {
            name: String::new(),
            child,
            orders,
            answers: lines,
        };
        let greeting = peer.line();
        if let Some(name) = greeting.strip_prefix("ready ") {
            peer.name = name.to_owned();
            return Some(peer);
        }
        absent(
            greeting
                .strip_prefix("absent ")
                .unwrap_or("it did not start in time"),
        );
        None
    }

    /// Has a work done; its seconds and tokens.
    pub(crate) fn ask(&mut self, order: &str) -> (f64, f64) {
        self.try_ask(order).expect("the peer does its work")
    }

    /// As [`Self::ask`]; says on stderr why there is nothing.
    pub(crate) fn try_ask(&mut self, order: &str) -> Option<(f64, f64)> {
        let answer = match writeln!(self.orders, "{order}") {
            Ok(()) => self.line(),
            Err(error) => error.to_string(),
        };
        let mut numbers = answer.split_whitespace().map(str::parse);
        if let (Some(Ok(seconds)), Some(Ok(count))) = (numbers.next(), numbers.next()) {
            return Some((seconds, count));
        }
        eprintln!("{} failed at `{order}`: {answer}", self.name);
        None
    }

    /// The next line; empty if the peer ended or took too long.
    fn line(&mut self) -> String {
        self.answers.recv_timeout(PATIENCE).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Nobody is left to tell if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
