//! The corpus: text that is on the machine, in tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ol_model::Tokenizer;

/// Folders to read, parted by colons; by default the sources of the crates that
/// cargo has unpacked, and `/usr/share`.
const FOLDERS: &str = "OPENLEDGER_BENCH_TEXT";

const EXTENSIONS: [&str; 16] = [
    "rs", "md", "txt", "c", "h", "cpp", "hpp", "py", "html", "js", "sol", "rst", "tex", "pl", "pm",
    "vim",
];
const FILE_SIZE_BYTES: std::ops::Range<u64> = 512..1 << 20;

/// One file in this many is kept out of the corpus.
const HELD_OUT: usize = 50;

/// Between documents in the cached file, and in the peer's.
pub(crate) const SEPARATOR: u16 = u16::MAX;

pub(crate) const VOCABULARY_SIZE: usize = 4_096;

/// Tokens of documents, each after a [`SEPARATOR`].
#[derive(Debug, Clone)]
pub(crate) struct Text(pub(crate) Vec<u16>);

impl Text {
    pub(crate) fn documents(&self) -> impl Iterator<Item = &[u16]> {
        self.0
            .split(|&token| token == SEPARATOR)
            .filter(|document| !document.is_empty())
    }

    /// The first documents of up to `n_tokens`, separators included.
    pub(crate) fn head(&self, n_tokens: usize) -> Self {
        let end = n_tokens.min(self.0.len());
        let is_whole = self.0.get(end).is_none_or(|&token| token == SEPARATOR);
        let last = self.0[..end].iter().rposition(|&token| token == SEPARATOR);
        Self(self.0[..if is_whole { end } else { last.unwrap_or(0) }].to_vec())
    }
}

/// The corpus of `n_tokens` and what was held out, from `cache` if it is there.
pub(crate) fn load(cache: &Path, n_tokens: usize) -> (Text, Text) {
    let paths = [
        cache.join(format!("corpus-{n_tokens}.u16")),
        cache.join(format!("held-out-{n_tokens}.u16")),
    ];
    if let [Ok(corpus), Ok(held_out)] = paths.each_ref().map(fs::read) {
        return (decode(&corpus), decode(&held_out));
    }
    let (corpus, held_out) = tokenize(n_tokens);
    for (path, text) in paths.iter().zip([&corpus, &held_out]) {
        fs::write(path, encode(&text.0)).expect("the target folder can be written");
    }
    (corpus, held_out)
}

pub(crate) fn encode(tokens: &[u16]) -> Vec<u8> {
    tokens
        .iter()
        .flat_map(|token| token.to_le_bytes())
        .collect()
}

fn decode(bytes: &[u8]) -> Text {
    Text(
        bytes
            .as_chunks()
            .0
            .iter()
            .copied()
            .map(u16::from_le_bytes)
            .collect(),
    )
}

fn folders() -> Vec<PathBuf> {
    if let Ok(folders) = std::env::var(FOLDERS) {
        return folders.split(':').map(PathBuf::from).collect();
    }
    let home = std::env::var("HOME").unwrap_or_default();
    let cargo = std::env::var("CARGO_HOME").map_or(Path::new(&home).join(".cargo"), PathBuf::from);
    vec![cargo.join("registry/src"), "/usr/share".into()]
}

fn tokenize(n_tokens: usize) -> (Text, Text) {
    let mut files = Vec::new();
    for folder in folders() {
        collect(&folder, &mut files);
    }
    // By name of the file, so that the folders are mixed and no library comes whole.
    files.sort_by_cached_key(|path| {
        (
            ol_types::keccak256(path.to_string_lossy().as_bytes()),
            path.clone(),
        )
    });
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/base");
    let tokenizer = Tokenizer::load(&base).expect("the default tokenizer is in the repository");
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    let (mut corpus, mut held_out) = (Vec::with_capacity(n_tokens), Vec::new());
    let mut number = 0;
    for batch in files.chunks(512) {
        let done: Vec<_> = batch.iter().map(|_| std::sync::OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| {
                    while let Some((path, slot)) =
                        at(batch, &done, next.fetch_add(1, Ordering::Relaxed))
                    {
                        slot.get_or_init(|| encode_file(&tokenizer, path));
                    }
                });
            }
        });
        for tokens in done
            .into_iter()
            .filter_map(|slot| slot.into_inner().flatten())
        {
            number += 1;
            let into = if number % HELD_OUT == 0 {
                &mut held_out
            } else {
                &mut corpus
            };
            into.push(SEPARATOR);
            into.extend(tokens);
        }
        if corpus.len() >= n_tokens {
            return (Text(corpus).head(n_tokens), Text(held_out));
        }
    }
    eprintln!(
        "only {} tokens of text on this machine; {FOLDERS} names other folders",
        corpus.len()
    );
    (Text(corpus), Text(held_out))
}

fn at<'a, A, B>(a: &'a [A], b: &'a [B], index: usize) -> Option<(&'a A, &'a B)> {
    Some((a.get(index)?, b.get(index)?))
}

fn encode_file(tokenizer: &Tokenizer, path: &Path) -> Option<Vec<u16>> {
    let text = fs::read_to_string(path).ok()?;
    let tokens = tokenizer.encode(&text).ok()?;
    tokens
        .into_iter()
        .map(|token| u16::try_from(token).ok())
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = entry.path();
        if kind.is_dir() {
            collect(&path, files);
        } else if kind.is_file() {
            let extension = path
                .extension()
                .and_then(|e| e.to_str())
                .unwrap_or_default();
            let size_bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            if EXTENSIONS.contains(&extension) && FILE_SIZE_BYTES.contains(&size_bytes) {
                files.push(path);
            }
        }
    }
}
