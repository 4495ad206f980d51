//! Records of tensors in files of bounded size.

use std::collections::{BTreeMap, HashMap};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::failed;
use crate::error::{Error, Result};

/// Tensors of one example, by name.
pub type Record = BTreeMap<String, Tensor>;

/// Bytes after which a shard is closed.
const SHARD_BYTES: usize = 64 << 20;

/// A folder of shards: each a safetensors file of records, whose tensors are called `<index>/<name>`, and whose own
/// name says which records it holds.
///
/// Where shards end depends on the records alone, not on when a run was interrupted: a last file that is not full
/// is written anew with the records that follow.
pub struct Shards {
    dir: PathBuf,
    files: Vec<File>,
    end: usize,
    open: Vec<Record>,
    open_bytes: usize,
    /// Whether the last file is of an earlier run, and may not be full.
    is_earlier: bool,
    /// The file whose records stand in `open`, too.
    reopened: Option<PathBuf>,
}

/// Records `start..end`.
struct File {
    start: usize,
    end: usize,
    path: PathBuf,
}

impl Shards {
    /// Opens a folder, which may be empty, or makes it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] if a shard is missing in between.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
            let path = entry.map_err(Error::io(dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let range = name
                .and_then(|name| name.strip_prefix("records-")?.strip_suffix(".safetensors"))
                .and_then(|range| range.split_once('-'))
                .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            if let Some((start, end)) = range {
                found.push((start, end, path));
            }
        }
        found.sort();
        let (mut files, mut next) = (Vec::<File>::new(), 0usize);
        for (start, end, path) in found {
            if let Some(shorter) = files.pop_if(|last| last.start == start && last.end < end) {
                // A run ended between a new file and the removal of the one that it replaces.
                std::fs::remove_file(&shorter.path).map_err(Error::io(&shorter.path))?;
                next = start;
            }
            if start != next || end <= start {
                let reason = format!("begins with record {start}, expected {next}");
                return Err(Error::malformed(path, reason));
            }
            files.push(File { start, end, path });
            next = end;
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            is_earlier: !files.is_empty(),
            files,
            end: next,
            open: Vec::new(),
            open_bytes: 0,
            reopened: None,
        })
    }

    /// Number of records, those that are not written yet included.
    pub fn len(&self) -> usize {
        self.end + self.open.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of files.
    pub fn n_files(&self) -> usize {
        self.files.len()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`Error::Io`] if a shard is full and cannot be written.
    pub fn push(&mut self, record: Record) -> Result<()> {
        if std::mem::take(&mut self.is_earlier) {
            self.reopen_last()?;
        }
        self.open_bytes += bytes(&record);
        self.open.push(record);
        if self.open_bytes >= SHARD_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Goes on with the last file if it is not full.
    fn reopen_last(&mut self) -> Result<()> {
        let last = self.files.len() - 1;
        let mut records: BTreeMap<usize, Record> = self.read(last)?.into_iter().collect();
        let size: usize = records.values().map(bytes).sum();
        if size < SHARD_BYTES {
            let File { start, end, path } = self.files.remove(last);
            // Records without tensors have left nothing in the file.
            let record = |index| records.remove(&index).unwrap_or_default();
            self.open = (start..end).map(record).collect();
            (self.end, self.open_bytes, self.reopened) = (start, size, Some(path));
        }
        Ok(())
    }

    /// Writes what is not written yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let start = self.end;
        let end = self.len();
        let path = (self.dir).join(format!("records-{:07}-{end:07}.safetensors", self.end));
        let mut tensors = HashMap::new();
        for (index, record) in (self.end..).zip(self.open.drain(..)) {
            for (name, tensor) in record {
                tensors.insert(format!("{index:07}/{name}"), tensor);
            }
        }
        save(&tensors, &path)?;
        if let Some(shorter) = self.reopened.take() {
            std::fs::remove_file(&shorter).map_err(Error::io(&shorter))?;
        }
        self.files.push(File { start, end, path });
        (self.end, self.open_bytes) = (end, 0);
        Ok(())
    }

    /// The first record that has something: of the first picture that could be read.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is none; those of [`read`](Self::read).
    pub(super) fn first(&self) -> Result<Record> {
        for file in 0..self.n_files() {
            let mut records = self.read(file)?.into_iter();
            if let Some((_, record)) = records.find(|(_, record)| !record.is_empty()) {
                return Ok(record);
            }
        }
        Err(Error::Argument {
            name: "data",
            reason: "none of its pictures could be read".to_owned(),
        })
    }

    /// Reads the records of one file, with their indices, in order.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming the file.
    pub fn read(&self, file: usize) -> Result<Vec<(usize, Record)>> {
        let path = &self.files[file].path;
        let tensors = load(path)?;
        let mut records: BTreeMap<usize, Record> = BTreeMap::new();
        for (name, tensor) in tensors {
            let parts = name.split_once('/');
            let parts = parts.and_then(|(index, name)| Some((index.parse().ok()?, name)));
            let Some((index, name)) = parts else {
                return Err(Error::malformed(
                    path,
                    format!("tensor `{name}` is of no record"),
                ));
            };
            let record = records.entry(index).or_default();
            record.insert(name.to_owned(), tensor);
        }
        Ok(records.into_iter().collect())
    }
}

/// A tensor of a record.
///
/// # Errors
/// [`Error::Shape`] if it has none of that name.
pub(super) fn part<'a>(record: &'a Record, name: &str) -> Result<&'a Tensor> {
    record.get(name).ok_or_else(|| Error::Shape {
        name: name.to_owned(),
        expected: "a tensor of each record".to_owned(),
        actual: "none".to_owned(),
    })
}

fn bytes(record: &Record) -> usize {
    let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
    record.values().map(bytes).sum()
}

/// Writes a safetensors file; a reader sees all of it or nothing.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    write_whole(path, |file| {
        candle_core::safetensors::save(tensors, file).map_err(failed)
    })
}

/// Lets `write` fill a file beside `path`, and puts it there.
///
/// # Errors
/// [`Error::Io`], and those of `write`.
pub(super) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // As readable as any file that the user makes.
    let file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(Error::io(folder))?;
    write(file.path())?;
    file.as_file().sync_all().map_err(Error::io(path))?;
    let kept = file.persist(path).map(drop);
    kept.map_err(|e| Error::io(path)(e.error))
}

/// Reads a safetensors file.
///
/// # Errors
/// [`Error::Malformed`] naming it.
pub(super) fn load(path: &Path) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| Error::malformed(path, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u32) -> Record {
        let tensor = Tensor::new(&[n, n + 1], &Device::Cpu).expect("tensor");
        Record::from([("ids".to_owned(), tensor)])
    }

    #[test]
    fn shards_come_back_as_written_and_a_gap_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let mut shards = Shards::open(dir.path()).expect("empty");
        for n in 0..5 {
            shards.push(record(n)).expect("push");
            if n % 2 == 1 {
                shards.flush().expect("flush");
            }
        }
        assert_eq!((shards.len(), shards.n_files()), (5, 2));
        // What was not flushed is lost.
        let mut again = Shards::open(dir.path()).expect("open");
        assert_eq!((again.len(), again.is_empty()), (4, false));
        let read = again.read(1).expect("read");
        let ids = read[1].1["ids"].to_vec1::<u32>().expect("ids");
        assert_eq!((read[1].0, ids), (3, vec![3, 4]));
        // The last file is not full: it is written anew.
        again.push(record(9)).expect("push");
        again.push(Record::new()).expect("push");
        again.flush().expect("flush");
        assert_eq!((again.len(), again.n_files()), (6, 2));
        let mut again = Shards::open(dir.path()).expect("open");
        again.push(record(8)).expect("push");
        again.flush().expect("flush");
        let read: Vec<usize> = again.read(1).expect("read").iter().map(|r| r.0).collect();
        assert_eq!((read, again.len()), (vec![2, 3, 4, 6], 7));
        let first = dir.path().join("records-0000000-0000002.safetensors");
        std::fs::write(&first, b"cut short").expect("damage");
        assert!(matches!(again.read(0), Err(Error::Malformed { .. })));
        std::fs::remove_file(&first).expect("remove");
        assert!(matches!(
            Shards::open(dir.path()),
            Err(Error::Malformed { .. })
        ));
    }
}
