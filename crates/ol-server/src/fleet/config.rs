//! Which workers there are: from flags or from a file.

use std::collections::BTreeSet;

use serde::Deserialize;

/// Most workers of a fleet.
pub const WORKERS_MAX: usize = 256;

/// Most requests that one worker may be given at once.
const SLOTS_MAX: usize = 65_536;

/// What speaks at a worker's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerKind {
    /// `openledger serve`: the same tokens as an engine of this process.
    #[default]
    Openledger,
    /// vLLM's OpenAI-compatible server with `--enable-lora` and
    /// `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`.
    Vllm,
}

impl WorkerKind {
    /// Its name in flags and files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Openledger => "openledger",
            Self::Vllm => "vllm",
        }
    }
}

/// One worker.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerOptions {
    /// Its name in reports and commands; its host and port if it is empty.
    #[serde(default)]
    pub name: String,
    /// Where it is: `http://HOST:PORT`.
    pub url: String,
    /// What it is.
    #[serde(default)]
    pub kind: WorkerKind,
    /// Key sent with every request to it.
    #[serde(default)]
    pub key: Option<String>,
    /// Key sent where adapters are loaded and unloaded; `key` if absent.
    #[serde(default)]
    pub admin_key: Option<String>,
    /// Most requests it is given at once. Default 16.
    #[serde(default = "default_slots")]
    pub slots: usize,
    /// Most adapters it is made to hold; with vLLM its `--max-cpu-loras`. Default 16.
    #[serde(default = "default_slots")]
    pub adapters_max: usize,
    /// The folder of published adapters as this worker sees it; the path of this
    /// machine if absent.
    #[serde(default)]
    pub adapter_root: Option<String>,
}

const fn default_slots() -> usize {
    16
}

// Keys stay out of logs.
impl std::fmt::Debug for WorkerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerOptions")
            .field("name", &self.name)
            .field("url", &self.url)
            .field("kind", &self.kind)
            .field("has_key", &self.key.is_some())
            .field("slots", &self.slots)
            .field("adapters_max", &self.adapters_max)
            .finish_non_exhaustive()
    }
}

/// What is wrong with a description of workers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is not what is expected.
    #[error("the file of workers cannot be read: {0}")]
    Toml(String),
    /// Not an address that can be used.
    #[error(
        "{url:?} is no worker's address; give http://HOST:PORT (there is no TLS in this build: use \
         a private network or a tunnel)"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// A part of a flag is not understood.
    #[error(
        "{part:?} is not understood; a worker is URL[,name=…][,kind=openledger|vllm][,key=…]\
         [,admin-key=…][,slots=N][,adapters=N][,adapter-root=DIR]"
    )]
    Part {
        /// The part.
        part: String,
    },
    /// A number is out of range.
    #[error("worker {name}: {what} must be from 1 to {max}")]
    Range {
        /// The worker.
        name: String,
        /// Which number.
        what: &'static str,
        /// The most there may be.
        max: usize,
    },
    /// Two workers have one name.
    #[error("two workers are called {name}; give them names of their own")]
    Twice {
        /// The name.
        name: String,
    },
    /// None, or too many.
    #[error("a fleet has 1 to {WORKERS_MAX} workers, {n_given} are given")]
    Number {
        /// How many.
        n_given: usize,
    },
}

impl WorkerOptions {
    /// A worker with the defaults.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            name: String::new(),
            url: url.to_owned(),
            kind: WorkerKind::default(),
            key: None,
            admin_key: None,
            slots: default_slots(),
            adapters_max: default_slots(),
            adapter_root: None,
        }
    }

    /// A worker as a flag says it: `URL[,name=…][,kind=…][,key=…][,admin-key=…]
    /// [,slots=N][,adapters=N][,adapter-root=DIR]`.
    ///
    /// # Errors
    /// [`ConfigError`] names the part that is wrong.
    pub fn from_flag(flag: &str) -> Result<Self, ConfigError> {
        let mut parts = flag.split(',');
        let mut worker = Self::new(parts.next().unwrap_or_default());
        for part in parts {
            let wrong = || ConfigError::Part {
                // A key must not get into an error's text.
                part: part.split('=').next().unwrap_or_default().to_owned(),
            };
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<usize>().map_err(|_| wrong());
            match name {
                "name" => worker.name = value.to_owned(),
                "kind" => {
                    worker.kind = match value {
                        "openledger" => WorkerKind::Openledger,
                        "vllm" => WorkerKind::Vllm,
                        _ => return Err(wrong()),
                    }
                }
                "key" => worker.key = Some(value.to_owned()),
                "admin-key" => worker.admin_key = Some(value.to_owned()),
                "slots" => worker.slots = number()?,
                "adapters" => worker.adapters_max = number()?,
                "adapter-root" => worker.adapter_root = Some(value.to_owned()),
                _ => return Err(wrong()),
            }
        }
        Ok(worker)
    }

    /// Host and port.
    pub(super) fn authority(&self) -> Result<String, ConfigError> {
        let wrong = || ConfigError::Url {
            url: self.url.clone(),
        };
        let uri: axum::http::Uri = self.url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let is_plain = uri.scheme_str() == Some("http")
            && uri.path().trim_end_matches('/').is_empty()
            && uri.query().is_none()
            && !authority.as_str().contains('@');
        if !is_plain {
            return Err(wrong());
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(format!("{}:{port}", authority.host()))
    }
}

/// Workers as a file lists them.
///
/// ```toml
/// [[worker]]
/// name = "gpu-1"                  # host and port if absent
/// url = "http://10.0.0.5:8000"
/// kind = "vllm"                   # openledger if absent
/// key = "…"
/// slots = 64                      # requests at once
/// adapters_max = 32               # with vLLM its --max-cpu-loras
/// adapter_root = "/mnt/adapters"  # the published folder as the worker sees it
/// ```
///
/// # Errors
/// [`ConfigError`].
pub fn workers_from_toml(text: &str) -> Result<Vec<WorkerOptions>, ConfigError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        worker: Vec<WorkerOptions>,
    }
    let file: File = toml::from_str(text).map_err(|error| {
        // The whole error quotes the line, which may hold a key.
        ConfigError::Toml(error.message().to_owned())
    })?;
    Ok(file.worker)
}

/// Fills in names, and checks everything.
pub(super) fn check(mut workers: Vec<WorkerOptions>) -> Result<Vec<WorkerOptions>, ConfigError> {
    if workers.is_empty() || workers.len() > WORKERS_MAX {
        return Err(ConfigError::Number {
            n_given: workers.len(),
        });
    }
    let mut names = BTreeSet::new();
    for worker in &mut workers {
        let authority = worker.authority()?;
        if worker.name.is_empty() {
            worker.name = authority;
        }
        let name = &worker.name;
        if !names.insert(name.clone()) {
            return Err(ConfigError::Twice { name: name.clone() });
        }
        for (what, n) in [
            ("slots", worker.slots),
            ("adapters_max", worker.adapters_max),
        ] {
            if !(1..=SLOTS_MAX).contains(&n) {
                return Err(ConfigError::Range {
                    name: name.clone(),
                    what,
                    max: SLOTS_MAX,
                });
            }
        }
    }
    Ok(workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_files_say_the_same() {
        let flag =
            "http://10.0.0.5:8000,name=gpu,kind=vllm,key=s,slots=64,adapters=32,adapter-root=/mnt";
        let text = r#"
            [[worker]]
            name = "gpu"
            url = "http://10.0.0.5:8000"
            kind = "vllm"
            key = "s"
            slots = 64
            adapters_max = 32
            adapter_root = "/mnt"
        "#;
        let worker = WorkerOptions::from_flag(flag).unwrap();
        assert_eq!(
            workers_from_toml(text).unwrap(),
            std::slice::from_ref(&worker)
        );
        assert!(!format!("{worker:?}").contains("\"s\""), "{worker:?}");
        let least = WorkerOptions::from_flag("http://localhost").unwrap();
        let checked = check(vec![least]).unwrap();
        assert_eq!(checked[0].name, "localhost:80");
    }

    #[test]
    fn what_is_wrong_is_named_and_keys_are_not() {
        for flag in [
            "http://a,slots=x",
            "http://a,kind=tgi",
            "http://a,key",
            "http://a,secret=abc",
        ] {
            let error = WorkerOptions::from_flag(flag).unwrap_err().to_string();
            assert!(
                error.contains("is not understood") && !error.contains("abc"),
                "{error}"
            );
        }
        for url in [
            "",
            "a:80",
            "https://a:80",
            "http://u:p@a",
            "http://a/v1",
            "http://a?b",
            "ftp://a",
        ] {
            let error = check(vec![WorkerOptions::new(url)]).unwrap_err();
            assert!(matches!(error, ConfigError::Url { .. }), "{url}: {error}");
        }
        let slots = |slots| WorkerOptions {
            slots,
            ..WorkerOptions::new("http://a")
        };
        for workers in [
            vec![],
            vec![slots(0)],
            vec![slots(SLOTS_MAX + 1)],
            vec![slots(1), slots(1)],
        ] {
            assert!(check(workers).is_err());
        }
        let error = workers_from_toml("[[worker]]\nurl = 5\nkey = \"abc\"").unwrap_err();
        assert!(!error.to_string().contains("abc"), "{error}");
        assert!(workers_from_toml("[[worker]]\nurl = \"http://a\"\nslot = 5").is_err());
    }
}
