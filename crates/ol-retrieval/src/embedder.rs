//! Embeddings of texts by a model of a folder.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ol_model::{
    ForwardError, KvCache, LoadError, Model, Pool, Segment, Sequence, Tokenizer, TokenizerError,
};
use ol_types::{B256, keccak256};
use serde_json::Value;

/// Tokens of a text that are embedded; the rest is left out.
const TEXT_TOKENS_MAX: usize = 512;

/// Texts that go through the model together.
const BATCH_TEXTS: usize = 16;

/// Bytes of the longest instruction before a text.
const INSTRUCTION_SIZE_BYTES_MAX: usize = 4_096;

/// Bytes of the largest settings file that is read.
const SETTINGS_SIZE_BYTES_MAX: u64 = 1 << 20;

/// A model that embeds texts.
///
/// The folder may be a plain language model: a text is then the mean of its
/// last hidden states. A folder made by sentence-transformers says itself what
/// a text is (`1_Pooling/config.json`: the mean, or the last token) and what is
/// written before it (`prompts` of `config_sentence_transformers.json`).
#[derive(Debug)]
pub struct Embedder {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    settings: Settings,
    pool: Mutex<Pool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    pooling: Pooling,
    /// Whether the model was trained to embed.
    is_trained: bool,
    query: String,
    passage: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    LastToken,
}

/// What a text is embedded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbedKind {
    /// To look for passages.
    Query,
    /// To be found.
    Passage,
}

/// Why there is no embedding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The model cannot be loaded.
    #[error("the embedding model cannot be loaded")]
    Load(#[from] LoadError),
    /// Its tokenizer cannot be loaded, or not cut a text.
    #[error("the embedding model's tokenizer")]
    Tokenizer(#[from] TokenizerError),
    /// Its settings are none that are known here.
    #[error("{file} of the embedding model: {what}")]
    Settings {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// The model refused a text: model and tokenizer do not belong together.
    #[error("the embedding model refused a text")]
    Forward(#[from] ForwardError),
}

impl Embedder {
    /// Loads the model, tokenizer and settings of a folder (or the model and
    /// tokenizer of a GGUF file).
    ///
    /// # Errors
    /// [`EmbedError`] says which of them cannot be read.
    pub fn load(path: &Path, n_threads: usize) -> Result<Self, EmbedError> {
        let settings = Settings::read(path)?;
        Ok(Self {
            model: Arc::new(Model::load(path)?),
            tokenizer: Arc::new(Tokenizer::load(path)?),
            settings,
            pool: Mutex::new(Pool::new(n_threads)),
        })
    }

    /// Embeds by the mean hidden states of a language model that is loaded
    /// already.
    #[must_use]
    pub fn of_language_model(
        model: Arc<Model>,
        tokenizer: Arc<Tokenizer>,
        n_threads: usize,
    ) -> Self {
        Self {
            model,
            tokenizer,
            settings: Settings::PLAIN,
            pool: Mutex::new(Pool::new(n_threads)),
        }
    }

    /// Numbers of an embedding.
    #[must_use]
    pub fn n_dimensions(&self) -> usize {
        self.model.config().hidden_size
    }

    /// Names everything that an embedding depends on beside the text.
    #[must_use]
    pub fn id(&self) -> B256 {
        let Settings {
            pooling,
            is_trained,
            query,
            passage,
        } = &self.settings;
        let rule = format!("{pooling:?}\n{is_trained}\n{query:?}\n{passage:?}");
        keccak256([self.model.hash().as_slice(), rule.as_bytes()].concat())
    }

    /// Whether embeddings have a common part that means nothing, as hidden
    /// states of language models do.
    pub(crate) const fn needs_centring(&self) -> bool {
        !self.settings.is_trained
    }

    /// Embeds texts; `[texts, dimensions]`, not normalised. What is longer than
    /// 512 tokens is cut. The same bits on every machine.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn embed(&self, kind: EmbedKind, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let instruction = match kind {
            EmbedKind::Query => &self.settings.query,
            EmbedKind::Passage => &self.settings.passage,
        };
        let context = self.model.config().max_position_embeddings;
        let n_max = TEXT_TOKENS_MAX.min(context).saturating_sub(1);
        let tokens = |text: &&str| {
            // More bytes than tokens can be made of need not be cut.
            let text = &text[..text.floor_char_boundary(n_max * 64)];
            let mut tokens = self.tokenizer.encode(&format!("{instruction}{text}"))?;
            tokens.truncate(n_max);
            tokens.push(self.tokenizer.end_id());
            Ok(tokens)
        };
        let tokens: Vec<Vec<u32>> = texts
            .iter()
            .map(tokens)
            .collect::<Result<_, EmbedError>>()?;
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let mut embeddings = Vec::with_capacity(texts.len());
        for batch in tokens.chunks(BATCH_TEXTS) {
            match self.settings.pooling {
                Pooling::Mean => self.add_means(&pool, batch, &mut embeddings)?,
                Pooling::LastToken => self.add_lasts(&pool, batch, &mut embeddings)?,
            }
        }
        Ok(embeddings)
    }

    fn add_means(
        &self,
        pool: &Pool,
        batch: &[Vec<u32>],
        out: &mut Vec<Vec<f32>>,
    ) -> Result<(), EmbedError> {
        // The end token is the one that a mean leaves out.
        let sequence = |tokens: &Vec<u32>| Sequence {
            weights: vec![1.0; tokens.len()],
            tokens: tokens.clone(),
        };
        let sequences: Vec<Sequence> = batch.iter().map(sequence).collect();
        out.extend(self.model.mean_hidden(pool, None, &sequences)?);
        Ok(())
    }

    fn add_lasts(
        &self,
        pool: &Pool,
        batch: &[Vec<u32>],
        out: &mut Vec<Vec<f32>>,
    ) -> Result<(), EmbedError> {
        let config = self.model.config();
        let caches = batch
            .iter()
            .map(|tokens| KvCache::new(config, tokens.len()));
        let mut caches: Vec<KvCache> = caches.collect();
        let segments = batch.iter().zip(&mut caches);
        let mut segments: Vec<Segment<'_>> = segments
            .map(|(tokens, cache)| Segment {
                tokens,
                cache,
                adapter: None,
            })
            .collect();
        let hidden = self.model.hidden(pool, &mut segments)?;
        let rows = hidden.chunks_exact(config.hidden_size);
        out.extend(rows.map(<[f32]>::to_vec));
        Ok(())
    }
}

impl Settings {
    const PLAIN: Self = Self {
        pooling: Pooling::Mean,
        is_trained: false,
        query: String::new(),
        passage: String::new(),
    };

    fn read(path: &Path) -> Result<Self, EmbedError> {
        let mut settings = Self::PLAIN;
        const POOLING: &str = "1_Pooling/config.json";
        if let Some(pooling) = read_json(path, POOLING)? {
            let is = |name: &str| pooling[name].as_bool() == Some(true);
            settings.is_trained = true;
            settings.pooling = match (is("pooling_mode_mean_tokens"), is("pooling_mode_lasttoken"))
            {
                (true, false) => Pooling::Mean,
                (false, true) => Pooling::LastToken,
                _ => {
                    return Err(EmbedError::Settings {
                        file: POOLING.to_owned(),
                        what: "only the mean of all tokens, or the last token, can be taken"
                            .to_owned(),
                    });
                }
            };
        }
        const PROMPTS: &str = "config_sentence_transformers.json";
        if let Some(config) = read_json(path, PROMPTS)? {
            let instruction = |name: &str| match &config["prompts"][name] {
                Value::Null => Ok(String::new()),
                Value::String(text) if text.len() <= INSTRUCTION_SIZE_BYTES_MAX => Ok(text.clone()),
                _ => Err(EmbedError::Settings {
                    file: PROMPTS.to_owned(),
                    what: format!(
                        "the prompt {name} is no text of at most {INSTRUCTION_SIZE_BYTES_MAX} bytes"
                    ),
                }),
            };
            settings.query = instruction("query")?;
            settings.passage = instruction("document")?;
        }
        Ok(settings)
    }
}

/// A file of settings; `None` where there is none.
fn read_json(path: &Path, file: &str) -> Result<Option<Value>, EmbedError> {
    let bad = |what: String| EmbedError::Settings {
        file: file.to_owned(),
        what,
    };
    let path = path.join(file);
    let size_bytes = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        // A GGUF file is no folder, and most folders have no settings.
        Err(_) => return Ok(None),
    };
    if size_bytes > SETTINGS_SIZE_BYTES_MAX {
        return Err(bad(format!(
            "{size_bytes} bytes, allowed are {SETTINGS_SIZE_BYTES_MAX}"
        )));
    }
    let bytes = fs::read(&path).map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
pub(crate) mod tests;
