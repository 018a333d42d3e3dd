//! `TrieTests`: a root from keys and values, through the node's own trie.
//!
//! The trie of a state has keys of one length, so a key never begins another
//! one and a branch never has a value. Tests of tries that have such keys are
//! skipped; those of secure tries, whose keys are hashes, all run.

use std::collections::BTreeMap;
use std::path::Path;

use alloy_primitives::{B256, hex, keccak256};
use ol_node::testing::MemoryTrie;
use serde::Deserialize;

use crate::fields::FieldError;
use crate::{CaseResult, Verdict};

/// Keys of the node are hashes.
const PREFIX: &str = "a key that begins another one, which no trie of a state has";

/// Asks for the keys before and after a key.
const CURSOR: &str = "asks for the neighbours of a key, which the node never does";

#[derive(Debug, Deserialize)]
struct TrieTest {
    #[serde(rename = "in")]
    input: Input,
    root: B256,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    /// In this order; nothing takes the key out.
    Ordered(Vec<(String, Option<String>)>),
    /// In any order.
    AnyOrder(BTreeMap<String, Option<String>>),
}

/// A key and its value afterwards.
type Entry = (Vec<u8>, Option<Vec<u8>>);

pub(crate) fn run(path: &Path, content: &[u8]) -> Result<Vec<CaseResult>, FieldError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if name == "trietestnextprev" {
        let tests: BTreeMap<String, serde_json::Value> = serde_json::from_slice(content)?;
        let skipped = |name| (name, Verdict::Skipped(CURSOR));
        return Ok(tests.into_keys().map(skipped).collect());
    }
    let is_secure = name.to_lowercase().contains("secure");
    let tests: BTreeMap<String, TrieTest> = serde_json::from_slice(content)?;
    tests
        .into_iter()
        .map(|(name, test)| Ok((name, test.check(is_secure)?)))
        .collect()
}

impl TrieTest {
    fn check(self, is_secure: bool) -> Result<Verdict, FieldError> {
        let is_any_order = matches!(self.input, Input::AnyOrder(_));
        let entries = self.input.entries(is_secure)?;
        if begins_another(&entries) {
            return Ok(Verdict::Skipped(PREFIX));
        }
        // One by one, as blocks that follow each other, and at one time, as one block.
        let mut histories: Vec<Vec<&[Entry]>> = vec![entries.chunks(1).collect()];
        let sorted: Vec<Entry> = BTreeMap::from_iter(entries.clone()).into_iter().collect();
        histories.push(vec![&sorted]);
        if is_any_order {
            histories.push(entries.chunks(1).rev().collect());
        }
        for history in histories {
            match root_after(&history) {
                Ok(root) if root == self.root => {}
                Ok(root) => {
                    let expected = self.root;
                    return Ok(Verdict::Failed(format!("root {root}, expected {expected}")));
                }
                Err(reason) => return Ok(Verdict::Failed(reason)),
            }
        }
        Ok(Verdict::Passed)
    }
}

impl Input {
    fn entries(self, is_secure: bool) -> Result<Vec<Entry>, FieldError> {
        let pairs: Vec<(String, Option<String>)> = match self {
            Self::Ordered(pairs) => pairs,
            Self::AnyOrder(pairs) => pairs.into_iter().collect(),
        };
        pairs
            .into_iter()
            .map(|(key, value)| {
                let mut key = bytes(&key)?;
                if is_secure {
                    key = keccak256(key).to_vec();
                }
                let value = value.as_deref().map(bytes).transpose()?;
                Ok((key, value.filter(|value| !value.is_empty())))
            })
            .collect()
    }
}

/// Text is its own bytes, unless it says that it is hexadecimal.
fn bytes(text: &str) -> Result<Vec<u8>, FieldError> {
    match text.strip_prefix("0x") {
        Some(digits) => hex::decode(digits).map_err(|_| FieldError::text(text, "string of bytes")),
        None => Ok(text.as_bytes().to_vec()),
    }
}

fn begins_another(entries: &[Entry]) -> bool {
    let keys = || entries.iter().map(|(key, _)| key);
    keys().any(|one| keys().any(|other| one != other && other.starts_with(one)))
}

fn root_after(history: &[&[Entry]]) -> Result<B256, String> {
    let mut trie = MemoryTrie::default();
    for changes in history {
        trie.apply(&changes.iter().cloned().collect())
            .map_err(|error| error.to_string())?
            .ok_or("the trie does not take a key")?;
        if !trie.is_as_rebuilt().map_err(|error| error.to_string())? {
            return Err("another trie than the one of all leaves at one time".to_owned());
        }
    }
    Ok(trie.root())
}
