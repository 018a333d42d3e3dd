//! Text to tokens, with control tokens only where the caller says.
//!
//! A *control token* steers the model: everything marked `special`, every added
//! token of the form `<|…|>` or `<｜…｜>` (DeepSeek marks its turn tokens as
//! ordinary ones), and the tokens that a configuration file names (`bos_token`
//! and so on). The library's own matching of added tokens cannot tell a token
//! that a chat template wrote from one that a user typed, so matching is done
//! here: control tokens come with their places in the text, other added tokens
//! (`<think>`, `<tool_call>`: vocabulary like any other) are matched as the
//! library does, and everything between goes through the library's normalizer,
//! pre-tokenizer and model.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizer::Range as Slice;
use tokenizers::{
    AddedToken, Model, ModelWrapper, NormalizedString, Normalizer, OffsetType, PreTokenizedString,
    PreTokenizer, Token,
};

/// Most ids of a vocabulary.
const MAX_VOCABULARY: usize = 1 << 20;

/// A control token at its place in a text, where its own text stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) range: Range<usize>,
    pub(crate) id: u32,
}

/// A token and the bytes of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) id: u32,
    pub(crate) range: Range<usize>,
}

/// Added tokens that text may contain.
#[derive(Debug, Clone)]
struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
}

#[derive(Debug, Clone)]
pub(super) struct Encoder {
    inner: tokenizers::Tokenizer,
    /// Matched before the text is normalized.
    raw: Matcher,
    /// Matched, in their normalized form, after it.
    normalized: Matcher,
    controls: BTreeMap<u32, AddedToken>,
    /// The model gives this one for what it does not know.
    unknown: Option<u32>,
}

/// The parts of `tokenizer.json` that are looked at before the library sees it.
/// The library panics where some of them are nested too deeply; reading them
/// as values finds that first.
#[derive(Debug, Deserialize)]
struct Head {
    #[serde(default)]
    decoder: Value,
    #[serde(default, rename = "normalizer")]
    _normalizer: Value,
    #[serde(default, rename = "pre_tokenizer")]
    _pre_tokenizer: Value,
    #[serde(default, rename = "post_processor")]
    _post_processor: Value,
    model: ModelHead,
}

#[derive(Debug, Deserialize)]
struct ModelHead {
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
}

impl Encoder {
    /// Reads the content of a `tokenizer.json`; `named` are tokens that other
    /// files call special. Also gives the field `decoder`.
    pub(super) fn parse(bytes: &[u8], named: &BTreeSet<&str>) -> Result<(Self, Value), String> {
        let head: Head = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if head.model.dropout.is_some_and(|p| p != 0.0) {
            return Err("model.dropout: encoding must not be random".to_owned());
        }
        let read = || tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string());
        let mut inner = guarded(read)?;
        if !matches!(inner.get_model(), ModelWrapper::BPE(_)) {
            return Err("the model is not BPE".to_owned());
        }
        // A prompt is never cut or filled up behind the caller's back.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let added: BTreeMap<u32, AddedToken> = inner
            .get_added_tokens_decoder()
            .iter()
            .map(|(id, token)| (*id, token.clone()))
            .collect();
        let mut controls: BTreeMap<u32, AddedToken> = added
            .iter()
            .filter(|(_, token)| token.special || looks_like_control(&token.content))
            .map(|(id, token)| (*id, token.clone()))
            .collect();
        for name in named {
            if let Some(id) = inner.token_to_id(name) {
                controls
                    .entry(id)
                    .or_insert_with(|| AddedToken::from(*name, true));
            }
        }
        let (normalized, raw): (Vec<_>, Vec<_>) = added
            .into_iter()
            .filter(|(id, token)| !controls.contains_key(id) && !token.content.is_empty())
            .partition(|(_, token)| token.normalized);
        let unknown = head.model.unk_token.and_then(|t| inner.token_to_id(&t));
        let encoder = Self {
            raw: Matcher::new(raw, |text| Ok(text.to_owned()))?,
            normalized: Matcher::new(normalized, |text| {
                let mut text = NormalizedString::from(text);
                if let Some(normalizer) = inner.get_normalizer() {
                    guarded(|| normalizer.normalize(&mut text).map_err(|e| e.to_string()))?;
                }
                Ok(text.get().to_owned())
            })?,
            controls,
            unknown,
            inner,
        };
        Ok((encoder, head.decoder))
    }

    /// The text of every id, in order; `None` for unused ids.
    pub(super) fn vocabulary(&self) -> Result<Vec<Option<String>>, String> {
        let vocabulary = self.inner.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |m| *m as usize + 1);
        if size == 0 || size > MAX_VOCABULARY {
            return Err(format!(
                "the vocabulary has {size} ids, allowed are 1 to {MAX_VOCABULARY}"
            ));
        }
        let mut table = vec![None; size];
        for (token, id) in vocabulary {
            table[id as usize] = Some(token);
        }
        Ok(table)
    }

    /// The tokens that text never becomes, by their ids.
    pub(super) const fn controls(&self) -> &BTreeMap<u32, AddedToken> {
        &self.controls
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The content of a `tokenizer.json`.
    pub(super) fn to_json(&self) -> Result<String, String> {
        self.inner.to_string(false).map_err(|e| e.to_string())
    }

    /// Tokens that the file's post-processor puts before and after a text.
    pub(super) fn frame(&self) -> Result<(Vec<u32>, Vec<u32>), String> {
        let encode = |special| {
            let encoding = guarded(|| {
                self.inner
                    .encode_fast("a", special)
                    .map_err(|e| e.to_string())
            })?;
            Ok::<_, String>(encoding.get_ids().to_vec())
        };
        let (framed, plain) = (encode(true)?, encode(false)?);
        let at = framed
            .windows(plain.len().max(1))
            .position(|w| w == plain)
            .ok_or("the post-processor changes the text's own tokens")?;
        let end = at + plain.len();
        Ok((framed[..at].to_vec(), framed[end..].to_vec()))
    }

    /// Tokens of a text without control tokens.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        guarded(|| {
            let encoding = self
                .split(text, &[])?
                .into_encoding(None, 0, OffsetType::None)
                .map_err(|e| e.to_string())?;
            self.check(encoding.get_ids(), &[])?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// Tokens of a text with these control tokens, which stand in order and do
    /// not overlap.
    pub(super) fn encode_placed(
        &self,
        text: &str,
        controls: &[Control],
    ) -> Result<Vec<Placed>, String> {
        guarded(|| {
            let encoding = self
                .split(text, controls)?
                .into_encoding(None, 0, OffsetType::Byte)
                .map_err(|e| e.to_string())?;
            self.check(encoding.get_ids(), controls)?;
            Ok(encoding
                .get_ids()
                .iter()
                .zip(encoding.get_offsets())
                .map(|(&id, &(start, end))| Placed {
                    id,
                    range: start..end,
                })
                .collect())
        })
    }

    /// The model itself could put a control token together from text, if its
    /// merges lead there; then the text is refused.
    fn check(&self, ids: &[u32], controls: &[Control]) -> Result<(), String> {
        let is_control = |id: u32| Some(id) != self.unknown && self.controls.contains_key(&id);
        let n_found = ids.iter().filter(|id| is_control(**id)).count();
        let n_wanted = controls.iter().filter(|c| is_control(c.id)).count();
        if n_found == n_wanted {
            return Ok(());
        }
        Err("the text contains a control token that the model encodes as such".to_owned())
    }

    fn split(&self, text: &str, controls: &[Control]) -> Result<PreTokenizedString, String> {
        let failed = |e: tokenizers::Error| e.to_string();
        let mut pieces = PreTokenizedString::from(text);
        if !controls.is_empty() {
            pieces
                .split(|_, whole| Ok(self.cut(&whole, text, controls)))
                .map_err(failed)?;
        }
        pieces
            .split(|_, piece| Ok(self.raw.cut(&piece)))
            .map_err(failed)?;
        pieces
            .split(|_, mut piece| {
                if let Some(normalizer) = self.inner.get_normalizer() {
                    normalizer.normalize(&mut piece)?;
                }
                Ok(self.normalized.cut(&piece))
            })
            .map_err(failed)?;
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        let model = self.inner.get_model();
        pieces
            .tokenize(|piece| model.tokenize(piece.get()))
            .map_err(failed)?;
        Ok(pieces)
    }

    fn cut(&self, whole: &NormalizedString, text: &str, controls: &[Control]) -> Vec<Cut> {
        let mut cuts = Vec::with_capacity(2 * controls.len() + 1);
        let mut at = 0;
        for (i, control) in controls.iter().enumerate() {
            let next = controls.get(i + 1).map_or(text.len(), |c| c.range.start);
            let Range { mut start, mut end } = control.range;
            if let Some(token) = self.controls.get(&control.id) {
                if token.lstrip {
                    start = at + text[at..start].trim_end().len();
                }
                if token.rstrip {
                    end = next - text[end..next].trim_start().len();
                }
            }
            push_cut(&mut cuts, whole, at..start, None);
            push_cut(&mut cuts, whole, start..end, Some(control.id));
            at = end;
        }
        push_cut(&mut cuts, whole, at..text.len(), None);
        cuts
    }
}

type Cut = (NormalizedString, Option<Vec<Token>>);

fn push_cut(cuts: &mut Vec<Cut>, whole: &NormalizedString, range: Range<usize>, id: Option<u32>) {
    if range.is_empty() {
        return;
    }
    let len = range.len();
    let piece = whole
        .slice(Slice::Normalized(range))
        .expect("the range lies on character boundaries of the text");
    let token = id.map(|id| vec![Token::new(id, String::new(), (0, len))]);
    cuts.push((piece, token));
}

impl Matcher {
    fn new(
        tokens: Vec<(u32, AddedToken)>,
        form: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Self, String> {
        let patterns = tokens
            .iter()
            .map(|(_, token)| form(&token.content))
            .collect::<Result<Vec<_>, _>>()?;
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&patterns)
            .map_err(|e| e.to_string())?;
        Ok(Self { automaton, tokens })
    }

    /// Splits `piece` at the added tokens in it, by the library's rules.
    fn cut(&self, piece: &NormalizedString) -> Vec<Cut> {
        let text = piece.get();
        if self.tokens.is_empty() {
            return vec![(piece.clone(), None)];
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut cuts = Vec::new();
        let mut at = 0;
        for found in self.automaton.find_iter(text) {
            let (mut start, mut end) = (found.start(), found.end());
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let touches_word = text[..start].chars().next_back().is_some_and(is_word)
                || text[end..].chars().next().is_some_and(is_word);
            if start == end || start < at || (token.single_word && touches_word) {
                continue;
            }
            if token.lstrip {
                start = at + text[at..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            push_cut(&mut cuts, piece, at..start, None);
            push_cut(&mut cuts, piece, start..end, Some(*id));
            at = end;
        }
        push_cut(&mut cuts, piece, at..text.len(), None);
        cuts
    }
}

/// `<|im_start|>`, `<｜User｜>` and the like steer the model, whatever their
/// flags say.
fn looks_like_control(token: &str) -> bool {
    let inside = |open: &str, close: &str| {
        token
            .strip_prefix(open)
            .and_then(|rest| rest.strip_suffix(close))
            .is_some_and(|name| !name.is_empty())
    };
    inside("<|", "|>") || inside("<｜", "｜>")
}

/// The library panics on some hostile files and texts; a caller gets an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the tokenizer's rules fail on this input".to_owned()))
}
