//! Goal: files are read as their writer meant them, and no bytes make the
//! reader panic, allocate without bound or believe what is not there.
//! Method: files of the gguf package (`fixtures/gguf/make.py`), headers built
//! here with one thing wrong each, and mutations of both.

use proptest::prelude::*;

use super::write::{Plan, tokenizer_metadata, write};
use super::*;
use crate::config::{Family, ModelConfig, Rope, Routing};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/gguf")
        .join(name)
}

const FILES: [&str; 7] = [
    "llama-q4_k.gguf",
    "llama3-f16.gguf",
    "mistral-q8_0.gguf",
    "qwen2-q4_0.gguf",
    "qwen3-bf16.gguf",
    "deepseek2-lite-q8_0.gguf",
    "deepseek2-v3-split-q8_0.gguf",
];

#[test]
fn configurations_are_those_the_files_were_made_with() {
    let config = |name| Gguf::open(&fixture(name)).unwrap().config().unwrap();
    let llama = config("llama-q4_k.gguf");
    let want = ModelConfig {
        vocab_size: 96,
        hidden_size: 256,
        intermediate_size: 256,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        num_key_value_heads: 1,
        head_dim: 64,
        max_position_embeddings: 128,
        tie_word_embeddings: false,
        ..ModelConfig::default_base()
    };
    assert_eq!(llama, want);
    let llama3 = config("llama3-f16.gguf");
    assert_eq!(llama3.rope_theta, 500_000.0);
    assert_eq!(
        llama3.rope,
        Rope::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        }
    );
    assert_eq!(config("mistral-q8_0.gguf").head_dim, 32);
    let qwen2 = config("qwen2-q4_0.gguf");
    assert_eq!(
        (qwen2.family, qwen2.tie_word_embeddings),
        (Family::Qwen2, true)
    );
    assert_eq!(config("qwen3-bf16.gguf").family, Family::Qwen3);
    let v2 = config("deepseek2-lite-q8_0.gguf");
    let Rope::Yarn {
        mscale: Some(mscale),
        ..
    } = v2.rope
    else {
        panic!("{:?}", v2.rope)
    };
    assert!((mscale - 0.707).abs() < 1e-9, "{mscale}");
    assert_eq!(v2.moe.unwrap().routing, Routing::Greedy);
    let v3 = config("deepseek2-v3-split-q8_0.gguf");
    let (mla, moe) = (v3.mla.unwrap(), v3.moe.unwrap());
    assert_eq!((v3.family, v3.num_key_value_heads), (Family::DeepSeekV3, 4));
    assert_eq!((mla.q_lora_rank, mla.kv_lora_rank), (Some(32), 32));
    assert_eq!((mla.qk_nope_head_dim, mla.v_head_dim), (16, 16));
    assert_eq!((moe.n_group, moe.topk_group), (2, 1));
    assert_eq!((moe.routed_scaling_factor, moe.norm_topk_prob), (2.5, true));
}

#[test]
fn a_written_file_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for name in FILES {
        let from = Gguf::open(&fixture(name)).unwrap();
        let config = from.config().unwrap();
        let tokenizer = from.tokenizer().unwrap().unwrap();
        let (mut metadata, freqs) = config::describe(&config).unwrap();
        metadata.extend(tokenizer_metadata(&tokenizer));
        assert_eq!(freqs.is_some(), name.starts_with("llama3"));
        let plans: Vec<Plan> = from
            .tensors()
            .iter()
            .map(|t| Plan {
                name: t.name.clone(),
                shape: t.shape.clone(),
                storage: t.storage,
            })
            .collect();
        let path = dir.path().join(name);
        write::<GgufError>(&path, &metadata, &plans, |i| {
            let t = &from.tensors()[i];
            from.read_rows(t, 0..t.rows().0)
        })
        .unwrap();
        let to = Gguf::open(&path).unwrap();
        assert_eq!(to.config().unwrap(), config, "{name}");
        assert_eq!(to.tokenizer().unwrap().unwrap(), tokenizer, "{name}");
        for (a, b) in from.tensors().iter().zip(to.tensors()) {
            assert_eq!((&a.name, &a.shape), (&b.name, &b.shape));
            let bytes = |g: &Gguf, t: &GgufTensor| g.read_rows(t, 0..t.rows().0).unwrap();
            assert_eq!(bytes(&from, a), bytes(&to, b), "{name} {}", a.name);
        }
        assert!(!dir.path().join(format!("{name}.tmp")).exists());
    }
}

#[test]
fn tokenizers_are_read() {
    let t = Gguf::open(&fixture("llama-q4_k.gguf"))
        .unwrap()
        .tokenizer()
        .unwrap()
        .unwrap();
    assert_eq!(
        (t.model.as_str(), t.pre.as_deref()),
        ("llama", Some("default"))
    );
    assert_eq!((t.tokens.len(), t.tokens[90].as_str()), (96, "he"));
    assert_eq!(
        (t.scores[90], t.kinds[0], t.kinds[95]),
        (-1.0, TokenKind::Byte, TokenKind::Control)
    );
    assert_eq!(t.merges, ["h e", "l o"]);
    assert_eq!((t.bos, t.eos, t.unknown), (Some(94), Some(95), None));
    assert_eq!(t.add_bos, Some(true));
    assert!(t.chat_template.unwrap().contains("messages"));
}

/// A header in the making.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(version: u32, n_tensors: u64, n_entries: u64) -> Self {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_entries.to_le_bytes());
        Self(bytes)
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let this = self.text(name).u32(u32::try_from(shape.len()).unwrap());
        let this = shape.iter().fold(this, |this, n| this.u64(*n));
        this.u32(kind).u64(offset)
    }

    /// Pads to the data, adds `n` bytes of it and opens the file.
    fn open(mut self, n: usize) -> Result<Gguf, GgufError> {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + n, 0);
        Gguf::from_bytes("test.gguf", self.0)
    }
}

#[track_caller]
fn refused(bytes: Bytes, words: &[&str]) {
    let error = bytes.open(256).unwrap_err().to_string();
    for word in words.iter().chain(&["test.gguf"]) {
        assert!(error.contains(word), "{error}: no {word:?}");
    }
}

#[test]
fn a_small_file_is_read() {
    for version in [2, 3] {
        let gguf = Bytes::new(version, 2, 1)
            .text("general.alignment")
            .u32(4)
            .u32(64)
            .tensor("a", &[32, 2], 8, 128)
            .tensor("b", &[3], 0, 0);
        let mut bytes = gguf.0;
        bytes.resize(bytes.len().next_multiple_of(64) + 128 + 68, 0);
        let gguf = Gguf::from_bytes("x", bytes).unwrap();
        let a = gguf.find("a").unwrap();
        assert_eq!((a.shape.as_slice(), a.size_bytes), ([2, 32].as_slice(), 68));
        assert_eq!(gguf.read_f32(a).unwrap(), [0.0; 64]);
        assert_eq!(gguf.read_f32(gguf.find("b").unwrap()).unwrap(), [0.0; 3]);
        assert!(gguf.find("c").is_none());
        assert!(gguf.tokenizer().unwrap().is_none());
        let error = gguf.config().unwrap_err().to_string();
        assert!(error.contains("general.architecture"), "{error}");
    }
}

#[test]
fn wrong_headers_are_refused_by_name() {
    let one = || Bytes::new(3, 1, 0);
    let entry = || Bytes::new(3, 0, 1);
    refused(Bytes(b"GGML....".to_vec()), &["GGUF"]);
    refused(Bytes(b"GG".to_vec()), &["GGUF"]);
    refused(Bytes::new(1, 0, 0), &["version 1", "2 or 3"]);
    refused(Bytes::new(3_u32.swap_bytes(), 0, 0), &["big-endian"]);
    refused(Bytes::new(3, 1 << 40, 0), &["tensors", "65536"]);
    refused(Bytes::new(3, 0, u64::MAX), &["metadata entries"]);
    refused(entry().u64(u64::MAX), &["key"]);
    refused(entry().u64(300), &["300 a metadata key"]);
    refused(entry().text("k").u32(8).u64(1 << 60), &["k of 11529"]);
    refused(entry().text("k").u32(13), &["k: no value type 13"]);
    refused(
        entry().text("k").u32(9).u32(4).u64(1 << 62),
        &["array elements"],
    );
    refused(
        entry().text("k").u32(9).u32(8).u64(1 << 30),
        &["array elements"],
    );
    refused(
        entry().text("k").u32(9).u32(9).u64(1),
        &["arrays of arrays"],
    );
    refused(entry().text("k").u32(7).u32(2), &["flag is 2"]);
    let twice = Bytes::new(3, 0, 2).text("k").u32(4).u32(1).text("k");
    refused(twice.u32(4).u32(1), &["k is there twice"]);
    let alignment = entry().text("general.alignment").u32(4).u32(24);
    refused(alignment, &["general.alignment", "24", "power of two"]);
    refused(one().tensor("t", &[], 0, 0), &["tensor t", "0 dimensions"]);
    refused(
        one().tensor("t", &[1; 5], 0, 0),
        &["tensor t", "5 dimensions"],
    );
    refused(
        one().tensor("t", &[0], 0, 0),
        &["tensor t", "dimension of 0"],
    );
    refused(
        one().tensor("t", &[1 << 40], 0, 0),
        &["tensor t", "dimension"],
    );
    refused(
        one().tensor("t", &[1 << 30; 4], 0, 0),
        &["tensor t", "too large"],
    );
    refused(
        one().tensor("t", &[256], 10, 0),
        &["tensor t", "Q2_K", "Q4_K"],
    );
    refused(one().tensor("t", &[256], 999, 0), &["tensor t", "type 999"]);
    refused(
        one().tensor("t", &[128], 12, 0),
        &["tensor t", "128", "blocks of 256"],
    );
    refused(
        one().tensor("t", &[8], 0, 8),
        &["tensor t", "multiple of 32"],
    );
    refused(one().tensor("t", &[65], 0, 0), &["tensor t", "260 bytes"]);
    refused(
        one().tensor("t", &[8], 0, u64::MAX - 31),
        &["tensor t", "32 bytes"],
    );
    let two = |second: &str, offset| {
        Bytes::new(3, 2, 0)
            .tensor("t", &[16], 0, 0)
            .tensor(second, &[16], 0, offset)
    };
    refused(two("u", 32), &["tensor u", "where t lies"]);
    refused(two("t", 64), &["tensor t", "twice"]);
    assert!(two("u", 64).open(128).is_ok());
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let mut bytes = Bytes::new(3, 1, 0).tensor("t", &[4], 0, 0).0;
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    for value in [1.0, 2.0, f32::NAN, 0.0] {
        bytes.extend(value.to_le_bytes());
    }
    let gguf = Gguf::from_bytes("x", bytes).unwrap();
    let error = gguf.read_f32(&gguf.tensors()[0]).unwrap_err().to_string();
    assert!(error.contains("tensor t: element 2 is NaN"), "{error}");
}

#[test]
fn a_file_that_is_cut_off_while_open_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::copy(fixture("qwen2-q4_0.gguf"), &path).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    std::fs::write(&path, b"short").unwrap();
    let error = gguf.read_f32(&gguf.tensors()[0]).unwrap_err().to_string();
    assert!(error.contains("m.gguf"), "{error}");
}

#[test]
fn rows_of_turned_heads_are_a_permutation() {
    for width in [2, 6, 64] {
        let mut seen: Vec<usize> = (0..3 * width).map(|r| names::file_row(r, width)).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..3 * width));
    }
    // The first value of a pair is in the first half of the head here.
    assert_eq!(names::file_row(1, 8), 2);
    assert_eq!(names::file_row(4, 8), 1);
}

/// Everything a caller may do with a file.
fn read_all(bytes: Vec<u8>) {
    let Ok(gguf) = Gguf::from_bytes("x", bytes) else {
        return;
    };
    let _ = gguf.tokenizer();
    if let Ok(config) = gguf.config() {
        if gguf.check_size(&config).is_err() {
            return;
        }
        let layout = crate::layout::Layout::new(&config);
        let _ = gguf.check_no_others(&config, layout.tensors().iter());
        for spec in layout.tensors() {
            let (rows, cols) = spec.rows();
            if gguf.check_model_tensor(&config, spec).is_ok() {
                let mut out = vec![0.0; rows * cols];
                let _ = gguf.read_model_rows(&config, spec, 0..rows, &mut out);
            }
        }
    }
    for tensor in gguf.tensors() {
        let _ = gguf.read_f32(tensor);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn changed_files_are_read_or_refused(
        file in 0..FILES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = std::fs::read(fixture(FILES[file])).unwrap();
        // Most of a file is weights; what can go wrong is in the header.
        let header = 8000.min(bytes.len());
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_all(bytes);
    }
}
