//! A server that speaks the hub's protocol, from a script: every request is
//! answered by a closure, and recorded.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// What a client asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn range_start(&self) -> Option<usize> {
        let range = self.headers.get("range")?;
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What it gets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Bytes of the body that are sent before the connection is closed.
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::new(200)
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A file, or what a `Range` asks of it.
    pub(crate) fn file(request: &Request, content: &[u8]) -> Self {
        let Some(start) = request.range_start() else {
            return Self::ok(content);
        };
        if start >= content.len() {
            return Self::new(416);
        }
        let (last, n) = (content.len() - 1, content.len());
        let mut reply = Self::new(206).with("Content-Range", format!("bytes {start}-{last}/{n}"));
        reply.body = content[start..].to_vec();
        reply
    }
}

type Answer = Box<dyn FnMut(&Request) -> Reply + Send>;

/// Listens until it is dropped with the process.
pub(crate) struct Server {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&requests);
        let mut answer: Answer = Box::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is no concern of the server.
                let _ = serve(&stream.unwrap(), &mut answer, &record);
            }
        });
        Self { url, requests }
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn targets(&self) -> Vec<String> {
        self.requests().into_iter().map(|r| r.target).collect()
    }
}

/// One request a connection.
fn serve(
    mut stream: &TcpStream,
    answer: &mut Answer,
    record: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { target, headers };
    record.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    stream.write_all(head.as_bytes())?;
    let n = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    stream.write_all(&reply.body[..n])
}

/// A file of a repository.
#[derive(Debug, Clone)]
pub(crate) struct RepoFile {
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    pub(crate) is_lfs: bool,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl RepoFile {
    pub(crate) fn new(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.to_owned(),
            content: content.into(),
            is_lfs: path.ends_with(".safetensors") || path.ends_with(".gguf"),
        }
    }

    /// Its name in `blobs`.
    pub(crate) fn hash(&self) -> String {
        if self.is_lfs {
            return hex(&Sha256::digest(&self.content));
        }
        let mut blob = format!("blob {}\0", self.content.len()).into_bytes();
        blob.extend(&self.content);
        hex(&Sha1::digest(&blob))
    }

    fn listing(&self) -> serde_json::Value {
        let size = self.content.len();
        let mut value = serde_json::json!({
            "rfilename": self.path, "size": size, "blobId": self.hash(),
        });
        if self.is_lfs {
            value["blobId"] = "0".repeat(40).into();
            value["lfs"] = serde_json::json!({
                "sha256": self.hash(), "size": size, "pointerSize": 134,
            });
        }
        value
    }
}

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The answer to the question for a revision's files.
pub(crate) fn listing(files: &[RepoFile]) -> Reply {
    let siblings: Vec<_> = files.iter().map(RepoFile::listing).collect();
    let body = serde_json::json!({"id": "org/model", "sha": COMMIT, "siblings": siblings});
    Reply::ok(body.to_string()).with("Content-Type", "application/json")
}

/// A repository as the hub serves it.
pub(crate) fn repository(files: Vec<RepoFile>) -> impl FnMut(&Request) -> Reply + Send + 'static {
    move |request| {
        if request
            .target
            .starts_with("/api/models/org/model/revision/")
        {
            return listing(&files);
        }
        find(&files, request).map_or_else(
            || Reply::new(404).with("X-Error-Code", "EntryNotFound"),
            |file| Reply::file(request, &file.content),
        )
    }
}

/// The file that a request is for.
pub(crate) fn find<'a>(files: &'a [RepoFile], request: &Request) -> Option<&'a RepoFile> {
    let prefix = format!("/org/model/resolve/{COMMIT}/");
    let path = request.target.strip_prefix(&prefix)?;
    files.iter().find(|f| f.path == path)
}
