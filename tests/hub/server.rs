//! A small hub on 127.0.0.1: the routes, redirects, tags and ranges of the real one, and faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with an answer that carries a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The connection ends after this many bytes of the body.
    Cut(usize),
    /// As `Cut`, and the answer does not say how long it would be.
    CutUnsized(usize),
    /// The connection ends before the answer.
    Kill,
    /// Nothing comes.
    Stall,
    /// The whole file comes, whatever range was asked for.
    IgnoreRange,
    /// The last byte is another one.
    Flip,
    /// Only a status.
    Status(u16),
    /// A redirect to nowhere, already to the question for size and tag.
    NoLocation,
    /// A tag that would be a path, already to the question for size and tag.
    EvilTag,
    /// Another size than the file has, in the answer to the question for it.
    Announce(u64),
    /// Bytes without end, where the file was to come.
    Endless,
    /// Another commit, already to the question for size and tag.
    OtherCommit,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    extra_names: Vec<String>,
    faults: BTreeMap<String, Vec<Fault>>,
    list_status: Option<u16>,
    requests: Vec<Request>,
}

/// Serves the repository `own/model`.
pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"));
        let state = Arc::new(Mutex::new(State {
            files: files
                .iter()
                .map(|(n, b)| ((*n).to_owned(), b.to_vec()))
                .collect(),
            ..State::default()
        }));
        let (shared, base) = (Arc::clone(&state), endpoint.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (shared, base) = (Arc::clone(&shared), base.clone());
                thread::spawn(move || {
                    // A client that hangs up is not the server's failure.
                    let _ = answer(&stream, &shared, &base);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { endpoint, state }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().expect("state"))
    }

    /// The next answers with this file's bytes go wrong, in this order.
    pub fn fail(&self, file: &str, faults: &[Fault]) {
        self.with(|s| s.faults.insert(file.to_owned(), faults.to_vec()));
    }

    /// The list of files is answered with a status only.
    pub fn refuse_list(&self, status: u16) {
        self.with(|s| s.list_status = Some(status));
    }

    /// Names in the list that no file has.
    pub fn list_also(&self, names: &[&str]) {
        self.with(|s| s.extra_names = names.iter().map(|&n| n.to_owned()).collect());
    }

    pub fn requests(&self) -> Vec<Request> {
        self.with(|s| s.requests.clone())
    }
}

fn answer(stream: &TcpStream, state: &Mutex<State>, base: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let range = headers.get("range").cloned();
    let mut out = stream;
    let mut state = state.lock().expect("state");
    state.requests.push(Request {
        path: path.clone(),
        range: range.clone(),
        authorization: headers.get("authorization").cloned(),
    });
    if path == "/api/models/own/model/revision/main" {
        if let Some(status) = state.list_status {
            return write!(
                out,
                "HTTP/1.1 {status} No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
        }
        let names: Vec<_> = state
            .files
            .keys()
            .chain(&state.extra_names)
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        let json = serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string();
        let n = json.len();
        return write!(
            out,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {n}\r\n\r\n{json}"
        );
    }
    let resolved = path.strip_prefix("/own/model/resolve/main/");
    let stored = path.strip_prefix("/store/");
    let name = resolved.or(stored).unwrap_or_default().to_owned();
    let Some(bytes) = state.files.get(&name).cloned() else {
        return write!(
            out,
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
    };
    let probe = range.as_deref() == Some("bytes=0-0");
    let faults = state.faults.entry(name.clone()).or_default();
    let early = |f: &Fault| matches!(f, Fault::NoLocation | Fault::EvilTag | Fault::OtherCommit);
    // Large files are redirected; their bytes, and so their faults, come from the store.
    let large = name.ends_with(".onnx") || name.ends_with("_data");
    let source = stored.is_some() || !large;
    let now = |f: &Fault| match f {
        Fault::Announce(_) => probe && source,
        f if early(f) => probe && resolved.is_some(),
        _ => !probe && source,
    };
    let fault = match faults.first().copied() {
        Some(fault) if now(&fault) => {
            faults.remove(0);
            Some(fault)
        }
        _ => None,
    };
    drop(state);
    let tag = match fault {
        Some(Fault::EvilTag) => "../../../../evil".to_owned(),
        _ if large => Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect(),
        _ => format!("tag-of-{}", bytes.len()),
    };
    let commit = match fault {
        Some(Fault::OtherCommit) => "f".repeat(40),
        _ => COMMIT.to_owned(),
    };
    let meta =
        format!("x-repo-commit: {commit}\r\netag: \"{tag}\"\r\nx-linked-etag: \"{tag}\"\r\n");
    match fault {
        Some(Fault::NoLocation) => {
            return write!(
                out,
                "HTTP/1.1 302 Found\r\nconnection: close\r\n{meta}content-length: 0\r\n\r\n"
            );
        }
        Some(Fault::Kill) => return Ok(()),
        Some(Fault::Stall) => {
            thread::sleep(std::time::Duration::from_secs(30));
            return Ok(());
        }
        Some(Fault::Status(status)) => {
            return write!(
                out,
                "HTTP/1.1 {status} No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
        }
        _ => {}
    }
    if large && resolved.is_some() {
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nconnection: close\r\n{meta}location: {base}/store/{name}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
    }
    let from = range
        .as_deref()
        .and_then(|r| r.strip_prefix("bytes=")?.split('-').next()?.parse().ok())
        .filter(|_| fault != Some(Fault::IgnoreRange))
        .unwrap_or(0usize);
    if from >= bytes.len() {
        return write!(
            out,
            "HTTP/1.1 416 Range\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
    }
    let mut body = match probe {
        true => bytes[..1].to_vec(),
        false => bytes[from..].to_vec(),
    };
    let (last, mut total) = (from + body.len() - 1, bytes.len() as u64);
    if let Some(Fault::Announce(size)) = fault {
        total = size;
    }
    let length = match fault {
        Some(Fault::CutUnsized(_) | Fault::Endless) => String::new(),
        _ => format!("content-length: {}\r\n", body.len()),
    };
    match fault {
        Some(Fault::Cut(n) | Fault::CutUnsized(n)) => body.truncate(n),
        Some(Fault::Flip) => *body.last_mut().expect("body") ^= 1,
        _ => {}
    }
    write!(
        out,
        "HTTP/1.1 206 Partial\r\nconnection: close\r\n{meta}content-range: bytes {from}-{last}/{total}\r\n{length}\r\n"
    )?;
    out.write_all(&body)?;
    while fault == Some(Fault::Endless) {
        out.write_all(&[b' '; 1 << 16])?;
    }
    Ok(())
}
