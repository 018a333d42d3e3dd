//! Near duplicates: records that share most of their pairs of words.
//!
//! A record's words, question then answer, make the set of their pairs; two
//! records are near duplicates if at least a given part of the pairs of both
//! together is in both (Jaccard's similarity). It is estimated by the number
//! of equal values among [`VALUES`] minima of hashes (Broder, *On the
//! resemblance and containment of documents*, 1997), and records to compare
//! with are found by bands of them that are equal (Indyk and Motwani, 1998).
//! Everything follows from the texts: section "Near duplicates" of
//! `specs/datanet.md`.
//!
//! About 1.2 KB of memory for each text that is entered.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::iter;

/// Values of a signature. An estimate of one half is off by 3 % (one standard
/// deviation); with fewer, honest records that are a third alike are taken for
/// copies.
const VALUES: usize = 256;

/// Bands, made of the first values, and values of a band: two records that are
/// half alike have an equal band in all but one case in ten thousand.
const BANDS: usize = 32;
const BAND_VALUES: usize = 2;

/// Texts that are found by one content of a band; more are not entered.
/// What so many have in common is boiler-plate, and the first ones stay.
const BUCKET_MAX: u16 = 1_024;

/// No text.
const NONE: u32 = u32::MAX;

/// The least hash of a text's pairs of words, of each of the hash functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature(Box<[u16; VALUES]>);

impl Signature {
    /// Of texts in normal form, one after the other; `None` if they have no
    /// words.
    pub(super) fn of(texts: &[&str]) -> Option<Self> {
        let words: Vec<&str> = texts.iter().flat_map(|text| words(text)).collect();
        let mut least = Box::new([u64::MAX; VALUES]);
        let mut add = |pair: &[&str]| {
            let hash = fnv1a(pair);
            for (value, seed) in least.iter_mut().zip(1..) {
                *value = (*value).min(mix(hash, seed));
            }
        };
        match words.as_slice() {
            [] => return None,
            [word] => add(&[word]),
            words => words.windows(2).for_each(add),
        }
        Some(Self(Box::new(least.map(high))))
    }

    fn n_equal(&self, other: &Self) -> usize {
        let pairs = self.0.iter().zip(other.0.iter());
        pairs.filter(|(a, b)| a == b).count()
    }

    /// What each band is looked up by. Two bands of the same key that are not
    /// equal do no harm: what is found is compared.
    fn keys(&self) -> impl Iterator<Item = u64> {
        let (bands, _) = self.0.as_chunks::<BAND_VALUES>();
        (1..).zip(&bands[..BANDS]).map(|(band, values)| {
            let word = u64::from(values[0]) << 16 | u64::from(values[1]);
            mix(word, band)
        })
    }
}

const fn high(hash: u64) -> u16 {
    (hash >> 48) as u16
}

/// The words of a text in normal form: runs of ASCII letters and digits and of
/// characters beyond ASCII; in scripts that are written without spaces, each
/// character.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !is_of_word(c));
        let first = rest.chars().next()?;
        let end = if is_word(first) {
            first.len_utf8()
        } else {
            let is_end = |c: char| !is_of_word(c) || is_word(c);
            rest.find(is_end).unwrap_or(rest.len())
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

const fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || !c.is_ascii()
}

/// Thai to Burmese, Khmer, kana, and Chinese characters.
const fn is_word(c: char) -> bool {
    matches!(c,
        '\u{e00}'..='\u{109f}'
        | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// FNV-1a of 64 bits over the words, a zero byte after each.
fn fnv1a(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The `seed`-th of a family of hash functions: the output function of
/// `SplitMix64` (Steele, Lea and Flood, 2014) after as many steps.
const fn mix(hash: u64, seed: u64) -> u64 {
    let x = hash.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Texts that have the same content of a band: the newest one, and how many.
#[derive(Debug)]
struct Bucket {
    newest: u32,
    n: u16,
}

/// Texts by their likeness, numbered from 0 as they come.
#[derive(Debug)]
pub(super) struct NearIndex {
    /// Equal values of a signature that make a near duplicate.
    n_equal_min: usize,
    /// By the key of a band.
    buckets: HashMap<u64, Bucket>,
    /// By number; `None` for texts without words.
    texts: Vec<Option<Entered>>,
}

#[derive(Debug)]
struct Entered {
    signature: Signature,
    /// The text before in the bucket of each band.
    before: Box<[u32; BANDS]>,
}

impl NearIndex {
    /// `percent`, 1 to 100, is the similarity of near duplicates.
    pub(super) fn new(percent: u8) -> Self {
        Self {
            n_equal_min: (usize::from(percent) * VALUES).div_ceil(100),
            buckets: HashMap::new(),
            texts: Vec::new(),
        }
    }

    /// The number of the first text that is nearly the same.
    pub(super) fn find(&self, signature: &Signature) -> Option<u32> {
        let mut first = NONE;
        for (band, key) in signature.keys().enumerate() {
            let mut next = self.buckets.get(&key).map_or(NONE, |bucket| bucket.newest);
            while let Some(Some(text)) = self.texts.get(next as usize) {
                if next < first && signature.n_equal(&text.signature) >= self.n_equal_min {
                    first = next;
                }
                next = text.before[band];
            }
        }
        (first != NONE).then_some(first)
    }

    /// Enters the next text.
    pub(super) fn push(&mut self, signature: Option<Signature>) {
        let number = u32::try_from(self.texts.len()).expect("two for each of 2^20 records at most");
        let text = signature.map(|signature| {
            let mut before = Box::new([NONE; BANDS]);
            for (before, key) in before.iter_mut().zip(signature.keys()) {
                match self.buckets.entry(key) {
                    Entry::Vacant(entry) => {
                        entry.insert(Bucket {
                            newest: number,
                            n: 1,
                        });
                    }
                    Entry::Occupied(mut entry) if entry.get().n < BUCKET_MAX => {
                        let bucket = entry.get_mut();
                        *before = std::mem::replace(&mut bucket.newest, number);
                        bucket.n += 1;
                    }
                    Entry::Occupied(_) => {}
                }
            }
            Entered { signature, before }
        });
        self.texts.push(text);
    }
}

#[cfg(test)]
mod tests;
