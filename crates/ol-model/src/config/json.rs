//! `config.json` in the layouts of transformers 4 and 5, in and out.

use serde_json::{Map, Value, json};

use super::{ConfigError, Family, Mla, ModelConfig, Moe, Rope, Routing, SlidingWindow};

/// The file's fields; every error names the field.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    /// The field as `read` sees it; absent and null are `None`.
    fn read<T>(
        &self,
        name: &str,
        want: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => {
                let mut text = value.to_string();
                if text.len() > 64 {
                    text = format!("{} ...", text.chars().take(60).collect::<String>());
                }
                Err(ConfigError::Syntax(format!(
                    "{name} is {text}, expected {want}"
                )))
            }
        }
    }

    fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        self.read(name, "a whole number", |v| {
            v.as_u64().and_then(|v| usize::try_from(v).ok())
        })
    }

    fn needed(&self, name: &str) -> Result<usize, ConfigError> {
        self.size(name)?
            .ok_or_else(|| ConfigError::Syntax(format!("{name} is missing")))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.read(name, "a number", Value::as_f64)
    }

    fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        Ok(self
            .read(name, "true or false", Value::as_bool)?
            .unwrap_or(false))
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(name, "a text", Value::as_str)
    }

    fn object(&self, name: &str) -> Result<Option<Self>, ConfigError> {
        Ok(self.read(name, "an object", Value::as_object)?.map(Self))
    }
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Unsupported(what.into()))
}

/// Defaults of transformers' classes for what a file may leave out.
struct Defaults {
    max_position_embeddings: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
}

impl Defaults {
    fn of(family: Family) -> Self {
        let (positions, heads, head_dim) = match family {
            Family::Llama | Family::DeepSeekV2 => (2048, None, None),
            Family::Mistral => (131_072, Some(8), None),
            Family::Qwen2 => (32_768, Some(32), None),
            Family::Qwen3 => (32_768, Some(32), Some(128)),
            Family::DeepSeekV3 => (4096, Some(128), None),
        };
        Self {
            max_position_embeddings: positions,
            num_key_value_heads: heads,
            head_dim,
        }
    }
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] that names the field, when it is not a configuration
    /// this engine can run.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let value: Value =
            serde_json::from_slice(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let Some(object) = value.as_object() else {
            return Err(ConfigError::Syntax("it is not an object".to_owned()));
        };
        let raw = Fields(object);
        let family = match raw.text("model_type")? {
            None => Family::Llama,
            Some(kind) => match Family::ALL.into_iter().find(|f| f.model_type() == kind) {
                Some(family) => family,
                None => {
                    let known = Family::ALL.map(Family::model_type).join(", ");
                    return unsupported(format!("model_type {kind:?} (known are {known})"));
                }
            },
        };
        if let Some(act) = raw
            .text("hidden_act")?
            .filter(|a| *a != "silu" && *a != "swish")
        {
            return unsupported(format!("hidden_act {act:?}"));
        }
        if let Some(quantised) = raw.object("quantization_config")? {
            let method = quantised.text("quant_method")?.unwrap_or("unknown");
            return unsupported(format!("quantization_config (quant_method {method:?})"));
        }
        if raw.get("num_hidden_layers").is_none() && raw.get("text_config").is_some() {
            return unsupported("text_config (a multimodal model)");
        }
        let defaults = Defaults::of(family);
        let mla = latent(&raw, family)?;
        let heads = raw.needed("num_attention_heads")?;
        let hidden_size = raw.needed("hidden_size")?;
        let head_dim = match (mla, raw.size("head_dim")?.or(defaults.head_dim)) {
            (Some(mla), _) => mla.qk_rope_head_dim,
            (None, Some(width)) => width,
            (None, None) => hidden_size / heads.max(1),
        };
        // `null` means one for each query head, absence the class's default.
        let kv_heads = match (raw.size("num_key_value_heads")?, mla) {
            (Some(n), _) => n,
            (None, None) if !object.contains_key("num_key_value_heads") => {
                defaults.num_key_value_heads.unwrap_or(heads)
            }
            (None, _) => heads,
        };
        let max_position_embeddings = raw
            .size("max_position_embeddings")?
            .unwrap_or(defaults.max_position_embeddings);
        let num_hidden_layers = raw.needed("num_hidden_layers")?;
        let (rope_theta, rope) = rope(&raw, max_position_embeddings)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is what is wanted"
        )]
        let rms_norm_eps = raw.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
        let has_mlp_bias = matches!(family, Family::Llama | Family::DeepSeekV2);
        let has_attention_bias = !matches!(family, Family::Mistral | Family::Qwen2);
        let config = Self {
            family,
            vocab_size: raw.needed("vocab_size")?,
            hidden_size,
            intermediate_size: raw.needed("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps,
            rope_theta,
            rope,
            max_position_embeddings,
            tie_word_embeddings: raw.flag("tie_word_embeddings")?,
            attention_bias: has_attention_bias && raw.flag("attention_bias")?,
            mlp_bias: has_mlp_bias && raw.flag("mlp_bias")?,
            sliding_window: window(&raw, family, num_hidden_layers)?,
            mla,
            moe: experts(&raw, family)?,
        };
        config.check()?;
        Ok(config)
    }

    /// The text of a `config.json` that transformers reads too.
    ///
    /// # Panics
    /// Never: every field is a number or a flag.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut value = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.model_type(),
            "hidden_act": "silu",
            "bos_token_id": null,
            "eos_token_id": 0,
            "pad_token_id": 3,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rope_parameters": rope_json(&self.rope, self.rope_theta),
        });
        let object = value.as_object_mut().expect("written as an object above");
        if self.family == Family::Llama {
            // Where tools of transformers 4 look for it.
            object.insert("rope_theta".to_owned(), json!(self.rope_theta));
        }
        if !matches!(self.family, Family::Mistral | Family::Qwen2) {
            object.insert("attention_bias".to_owned(), json!(self.attention_bias));
        }
        if matches!(self.family, Family::Llama | Family::DeepSeekV2) {
            object.insert("mlp_bias".to_owned(), json!(self.mlp_bias));
        }
        match (self.family, &self.sliding_window) {
            (Family::Mistral, window) => {
                let tokens = window.as_ref().map(|w| w.window_tokens);
                object.insert("sliding_window".to_owned(), json!(tokens));
            }
            (Family::Qwen2 | Family::Qwen3, window) => {
                object.insert("use_sliding_window".to_owned(), json!(window.is_some()));
                if let Some(window) = window {
                    let types: Vec<&str> = window
                        .layers
                        .iter()
                        .map(|on| if *on { SLIDING } else { FULL })
                        .collect();
                    object.insert("sliding_window".to_owned(), json!(window.window_tokens));
                    object.insert("layer_types".to_owned(), json!(types));
                }
            }
            _ => {}
        }
        if let Some(mla) = &self.mla {
            object.remove("head_dim");
            for (name, value) in [
                ("kv_lora_rank", mla.kv_lora_rank),
                ("qk_nope_head_dim", mla.qk_nope_head_dim),
                ("qk_rope_head_dim", mla.qk_rope_head_dim),
                ("v_head_dim", mla.v_head_dim),
            ] {
                object.insert(name.to_owned(), json!(value));
            }
            object.insert("q_lora_rank".to_owned(), json!(mla.q_lora_rank));
            if self.family == Family::DeepSeekV3 {
                object.insert("rope_interleave".to_owned(), json!(mla.rope_interleave));
            }
        }
        match &self.moe {
            Some(moe) => experts_json(moe, self.family, object),
            None if self.mla.is_some() => {
                let layers = json!(self.num_hidden_layers);
                object.insert("first_k_dense_replace".to_owned(), layers);
            }
            None => {}
        }
        let mut text = serde_json::to_string_pretty(&value).expect("a JSON value has a text");
        text.push('\n');
        text
    }
}

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// Base and scaling. transformers 4 writes `rope_theta` and `rope_scaling`
/// (with `type` in old files), transformers 5 `rope_parameters`.
fn rope(raw: &Fields<'_>, max_positions: usize) -> Result<(f64, Rope), ConfigError> {
    if raw
        .number("partial_rotary_factor")?
        .is_some_and(|factor| factor != 1.0)
    {
        return unsupported("partial_rotary_factor");
    }
    let theta = raw.number("rope_theta")?;
    let (name, fields) = match raw.object("rope_scaling")?.filter(|f| !f.0.is_empty()) {
        Some(fields) => ("rope_scaling", fields),
        None => match raw.object("rope_parameters")? {
            Some(fields) => ("rope_parameters", fields),
            None => return Ok((theta.unwrap_or(10_000.0), Rope::Default)),
        },
    };
    // One dictionary for each type of layer: fine while they agree.
    let nested: Vec<&Value> = [FULL, SLIDING]
        .iter()
        .filter_map(|k| fields.get(k))
        .collect();
    let fields = match nested.first().and_then(|v| v.as_object()) {
        Some(first) => {
            if nested.iter().any(|v| **v != *nested[0]) {
                return unsupported(format!("{name} that differ between layer types"));
            }
            Fields(first)
        }
        None => fields,
    };
    if fields
        .number("partial_rotary_factor")?
        .is_some_and(|factor| factor != 1.0)
    {
        return unsupported("partial_rotary_factor");
    }
    let theta = fields.number("rope_theta")?.or(theta).unwrap_or(10_000.0);
    let kind = match fields.text("rope_type")? {
        Some(kind) => kind,
        None => fields.text("type")?.unwrap_or("default"),
    };
    let needed = |field: &str| {
        fields.number(field)?.ok_or_else(|| {
            ConfigError::Syntax(format!("{name}.{field} is missing (rope_type {kind:?})"))
        })
    };
    let original = match raw.size("original_max_position_embeddings")? {
        Some(original) => original,
        None => fields
            .size("original_max_position_embeddings")?
            .unwrap_or(max_positions),
    };
    let rope = match kind {
        "default" => Rope::Default,
        "linear" => Rope::Linear {
            factor: needed("factor")?,
        },
        "dynamic" => Rope::Dynamic {
            factor: needed("factor")?,
        },
        "llama3" => Rope::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_position_embeddings: original,
        },
        "yarn" => {
            #[expect(clippy::cast_precision_loss, reason = "contexts are below 2^53")]
            let implied = max_positions as f64 / original.max(1) as f64;
            let nonzero = |v: Option<f64>| v.filter(|v| *v != 0.0);
            Rope::Yarn {
                factor: fields.number("factor")?.unwrap_or(implied),
                original_max_position_embeddings: original,
                attention_factor: fields.number("attention_factor")?,
                beta_fast: nonzero(fields.number("beta_fast")?).unwrap_or(32.0),
                beta_slow: nonzero(fields.number("beta_slow")?).unwrap_or(1.0),
                mscale: fields.number("mscale")?,
                mscale_all_dim: fields.number("mscale_all_dim")?,
                truncate: fields
                    .read("truncate", "true or false", Value::as_bool)?
                    .unwrap_or(true),
            }
        }
        other => return unsupported(format!("rope_type {other:?}")),
    };
    Ok((theta, rope))
}

fn rope_json(rope: &Rope, theta: f64) -> Value {
    let mut value = json!({ "rope_type": rope.name(), "rope_theta": theta });
    let mut put = |name: &str, number: Value| value[name] = number;
    match *rope {
        Rope::Default => {}
        Rope::Linear { factor } | Rope::Dynamic { factor } => put("factor", json!(factor)),
        Rope::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            put("factor", json!(factor));
            put("low_freq_factor", json!(low_freq_factor));
            put("high_freq_factor", json!(high_freq_factor));
            put(
                "original_max_position_embeddings",
                json!(original_max_position_embeddings),
            );
        }
        Rope::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            put("factor", json!(factor));
            put(
                "original_max_position_embeddings",
                json!(original_max_position_embeddings),
            );
            put("beta_fast", json!(beta_fast));
            put("beta_slow", json!(beta_slow));
            put("truncate", json!(truncate));
            for (name, number) in [
                ("attention_factor", attention_factor),
                ("mscale", mscale),
                ("mscale_all_dim", mscale_all_dim),
            ] {
                if let Some(number) = number {
                    put(name, json!(number));
                }
            }
        }
    }
    value
}

/// Which layers slide: all of Mistral's, those of Qwen from
/// `max_window_layers` on or as `layer_types` says.
fn window(
    raw: &Fields<'_>,
    family: Family,
    n_layers: usize,
) -> Result<Option<SlidingWindow>, ConfigError> {
    let given = raw.0.contains_key("sliding_window");
    let tokens = raw.size("sliding_window")?;
    let types = raw.read("layer_types", "a list of texts", |v| {
        v.as_array()?
            .iter()
            .map(Value::as_str)
            .collect::<Option<Vec<_>>>()
    })?;
    if let Some(odd) = types
        .iter()
        .flatten()
        .find(|kind| **kind != SLIDING && **kind != FULL)
    {
        return unsupported(format!("layer_types {odd:?}"));
    }
    // A file may name more layers than there can be.
    let n_layers = n_layers.min(1 << 10);
    let layers = match family {
        Family::Mistral => {
            let window = if given { tokens } else { Some(4096) };
            let want = if window.is_some() { SLIDING } else { FULL };
            if types.iter().flatten().any(|kind| *kind != want) {
                return unsupported("layer_types that differ in a Mistral model");
            }
            return Ok(window.map(|window_tokens| SlidingWindow {
                window_tokens,
                layers: vec![true; n_layers],
            }));
        }
        Family::Qwen2 | Family::Qwen3 => match types {
            Some(types) => types.iter().map(|kind| *kind == SLIDING).collect(),
            None => {
                let first = raw.size("max_window_layers")?.unwrap_or(28);
                (0..n_layers).map(|i| i >= first).collect::<Vec<_>>()
            }
        },
        _ => {
            if types.iter().flatten().any(|kind| *kind == SLIDING) {
                return unsupported(format!("layer_types {SLIDING:?} in this model_type"));
            }
            return Ok(None);
        }
    };
    let used = raw.flag("use_sliding_window")?;
    let tokens = if given { tokens } else { Some(4096) };
    match tokens.filter(|_| used) {
        Some(window_tokens) if layers.contains(&true) => Ok(Some(SlidingWindow {
            window_tokens,
            layers,
        })),
        None if raw.get("layer_types").is_some() && layers.contains(&true) => {
            unsupported("layer_types with sliding layers but no use_sliding_window")
        }
        _ => Ok(None),
    }
}

fn latent(raw: &Fields<'_>, family: Family) -> Result<Option<Mla>, ConfigError> {
    if !matches!(family, Family::DeepSeekV2 | Family::DeepSeekV3) {
        return Ok(None);
    }
    let interleaved = raw.read("rope_interleave", "true or false", Value::as_bool)?;
    Ok(Some(Mla {
        q_lora_rank: if raw.0.contains_key("q_lora_rank") {
            raw.size("q_lora_rank")?
        } else {
            Some(1536)
        },
        kv_lora_rank: raw.size("kv_lora_rank")?.unwrap_or(512),
        qk_nope_head_dim: raw.size("qk_nope_head_dim")?.unwrap_or(128),
        qk_rope_head_dim: raw.size("qk_rope_head_dim")?.unwrap_or(64),
        v_head_dim: raw.size("v_head_dim")?.unwrap_or(128),
        rope_interleave: family == Family::DeepSeekV2 || interleaved.unwrap_or(true),
    }))
}

fn experts(raw: &Fields<'_>, family: Family) -> Result<Option<Moe>, ConfigError> {
    let v3 = match family {
        Family::DeepSeekV2 => false,
        Family::DeepSeekV3 => true,
        _ => {
            for name in ["num_experts", "num_local_experts", "n_routed_experts"] {
                if raw.size(name)?.is_some_and(|n| n > 1) {
                    return unsupported(format!("{name} in this model_type"));
                }
            }
            return Ok(None);
        }
    };
    let layers = raw.needed("num_hidden_layers")?;
    let first = raw
        .size("first_k_dense_replace")?
        .unwrap_or(if v3 { 3 } else { 0 });
    if first >= layers {
        return Ok(None);
    }
    if raw.size("moe_layer_freq")?.is_some_and(|every| every != 1) {
        return unsupported("moe_layer_freq other than 1");
    }
    let routing = match (raw.text("topk_method")?, v3) {
        (Some("greedy") | None, false) => Routing::Greedy,
        (Some("group_limited_greedy"), false) => Routing::GroupLimitedGreedy,
        (Some("noaux_tc") | None, true) => Routing::NoAuxTc,
        (Some(other), _) => return unsupported(format!("topk_method {other:?}")),
    };
    let scoring = if v3 { "sigmoid" } else { "softmax" };
    if let Some(other) = raw.text("scoring_func")?.filter(|s| *s != scoring) {
        return unsupported(format!("scoring_func {other:?}"));
    }
    let pick = |name: &str, v2: usize, v3_default: usize| {
        Ok::<_, ConfigError>(raw.size(name)?.unwrap_or(if v3 { v3_default } else { v2 }))
    };
    let norm = raw
        .read("norm_topk_prob", "true or false", Value::as_bool)?
        .unwrap_or(v3);
    if norm && !v3 {
        return unsupported("norm_topk_prob in deepseek_v2");
    }
    let groups = pick("n_group", 1, 8)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    let factor = raw
        .number("routed_scaling_factor")?
        .unwrap_or(if v3 { 2.5 } else { 1.0 }) as f32;
    Ok(Some(Moe {
        n_routed_experts: pick("n_routed_experts", 64, 256)?,
        num_experts_per_tok: match raw.size("num_experts_per_tok")? {
            Some(n) => n,
            None if v3 => 8,
            None => return Err(ConfigError::Syntax("num_experts_per_tok is missing".into())),
        },
        n_shared_experts: pick("n_shared_experts", 2, 1)?,
        moe_intermediate_size: pick("moe_intermediate_size", 1407, 2048)?,
        first_k_dense_replace: first,
        n_group: groups,
        topk_group: match raw.size("topk_group")? {
            Some(n) => n,
            None if v3 => 4,
            None => groups,
        },
        routed_scaling_factor: factor,
        norm_topk_prob: norm,
        routing,
    }))
}

fn experts_json(moe: &Moe, family: Family, object: &mut Map<String, Value>) {
    for (name, value) in [
        ("n_routed_experts", moe.n_routed_experts),
        ("num_experts_per_tok", moe.num_experts_per_tok),
        ("n_shared_experts", moe.n_shared_experts),
        ("moe_intermediate_size", moe.moe_intermediate_size),
        ("first_k_dense_replace", moe.first_k_dense_replace),
        ("n_group", moe.n_group),
        ("topk_group", moe.topk_group),
    ] {
        object.insert(name.to_owned(), json!(value));
    }
    let factor = json!(moe.routed_scaling_factor);
    object.insert("routed_scaling_factor".to_owned(), factor);
    object.insert("norm_topk_prob".to_owned(), json!(moe.norm_topk_prob));
    if family == Family::DeepSeekV2 {
        let method = match moe.routing {
            Routing::GroupLimitedGreedy => "group_limited_greedy",
            _ => "greedy",
        };
        object.insert("topk_method".to_owned(), json!(method));
    }
}
