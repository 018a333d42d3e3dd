//! Models from and to GGUF files.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::build::{Builder, Source};
use super::{LoadError, Model, Piece};
use crate::config::{ModelConfig, WeightFormat};
use crate::gguf::{Gguf, GgufError, GgufTokenizer, ModelWriter, Storage};
use crate::layout::{Layout, TensorSpec};
use crate::pool::Pool;
use crate::quant::{Format, QuantMatrix};

/// A file as the place where tensors come from.
struct File<'a> {
    gguf: &'a Gguf,
    config: &'a ModelConfig,
    pool: &'a Pool,
}

impl Source for File<'_> {
    fn read(
        &self,
        spec: &TensorSpec,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), LoadError> {
        Ok(self.gguf.read_model_rows(self.config, spec, rows, out)?)
    }

    fn stored(&self, spec: &TensorSpec) -> Result<Option<QuantMatrix>, LoadError> {
        Ok(self.gguf.read_model_matrix(self.pool, self.config, spec)?)
    }

    fn unfit(&self, spec: &TensorSpec, reason: String) -> LoadError {
        self.gguf.tensor_error(&spec.name, reason).into()
    }
}

impl Model {
    /// Takes the model out of a GGUF file, the matrices in `format`
    /// ([`WeightFormat::Stored`]: as the file has them).
    ///
    /// # Errors
    /// [`LoadError`] that names the file, and the key or tensor concerned.
    pub fn from_gguf(pool: &Pool, gguf: &Gguf, format: WeightFormat) -> Result<Self, LoadError> {
        let config = gguf.config()?;
        // The layout of a configuration has a tensor for each expert and layer:
        // a hostile header may ask for more than there are bytes in the file.
        gguf.check_size(&config)?;
        let layout = Layout::new(&config);
        for spec in layout.tensors() {
            gguf.check_model_tensor(&config, spec)?;
        }
        gguf.check_no_others(&config, layout.tensors().iter())?;
        let file = File {
            gguf,
            config: &config,
            pool,
        };
        Builder::new(&config, &layout, &file, pool)
            .format(format)
            .model()
    }

    /// Writes the model as one GGUF file with its matrices in `format`, so that
    /// llama.cpp reads it. What has no whole blocks of that format is
    /// stored as Q8_0 or F16, the output layer beside Q4_K as Q6_K, vectors and
    /// routers as F32.
    ///
    /// # Errors
    /// [`GgufError`] when the file cannot be written, the configuration cannot
    /// be said in GGUF, or a weight is too large for its format.
    ///
    /// # Panics
    /// If `format` is one of NF4's, which GGUF does not have.
    pub fn save_gguf(
        &self,
        path: &Path,
        format: Format,
        tokenizer: Option<&GgufTokenizer>,
    ) -> Result<(), GgufError> {
        assert!(
            Storage::Quantised(format).is_in_files(),
            "GGUF has no {}",
            format.name()
        );
        let pieces: HashMap<&str, (&TensorSpec, Piece<'_>)> = self
            .pieces()
            .into_iter()
            .map(|(spec, piece)| (spec.name.as_str(), (spec, piece)))
            .collect();
        let writer = ModelWriter::new(&self.config, &self.layout, format);
        writer.write(path, tokenizer, |name, row, out| {
            let (spec, piece) = &pieces[name];
            piece.row(spec, row, out);
        })
    }
}
