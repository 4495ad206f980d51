//! Kernels in the device's memory, and their launches (an unsafe fence: see `tests/house.rs`).
//!
//! Every launch checks that what the kernel reads and writes lies within the memory that it is given;
//! what it is given is as the kernel's file says.
#![allow(unsafe_code)]

use super::super::driver::{Arg, Device, Kernel, Memory, Module};
use super::{Dims, ENTRIES, MAX_DRAFT, Step, kv_append, prompt_rows, prune, step_inputs, verify};
use crate::error::{Error, Result};

/// Floats of a width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    /// 16 bits.
    F16,
    /// 32 bits.
    F32,
}

impl Float {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// Token embeddings on the device.
pub struct Table {
    /// `[vocab, d]`: floats, or i8 with scales.
    pub rows: Memory,
    /// Width of floats; integers if there are scales.
    pub float: Float,
    /// `[vocab]` f32, with integers.
    pub scales: Option<Memory>,
    /// Number of rows.
    pub vocab: usize,
    /// Elements of a row.
    pub d: usize,
}

impl Table {
    fn suffix(&self) -> &'static str {
        match self.scales {
            Some(_) => "i8",
            None => self.float.suffix(),
        }
    }

    fn check(&self) -> Result<()> {
        let element = if self.scales.is_some() {
            1
        } else {
            self.float.bytes()
        };
        has(&self.rows, 0, &[self.vocab, self.d, element])?;
        match &self.scales {
            Some(scales) => has(scales, 0, &[self.vocab, 4]),
            None => Ok(()),
        }
    }

    fn args(&self) -> [Arg<'_>; 2] {
        let scales = self.scales.as_ref();
        [
            Arg::Memory(&self.rows, 0),
            scales.map_or(Arg::Null, |scales| Arg::Memory(scales, 0)),
        ]
    }
}

/// All kernels, on a device.
pub struct Kernels {
    by_entry: Vec<Kernel>,
}

impl Kernels {
    /// Loads what [`compile`](super::compile) made for the device's SM.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the driver refuses it or a kernel is missing.
    pub fn load(device: &Device, cubin: &[u8]) -> Result<Self> {
        let module: Module = device.module(cubin)?;
        let by_entry = ENTRIES.iter().map(|entry| module.kernel(entry));
        Ok(Self {
            by_entry: by_entry.collect::<Result<_>>()?,
        })
    }

    fn find(&self, name: &str) -> Result<&Kernel> {
        let found = ENTRIES.iter().position(|entry| *entry == name);
        found
            .map(|at| &self.by_entry[at])
            .ok_or_else(|| Error::Cuda {
                call: "cuModuleGetFunction",
                message: format!("there is no kernel {name}"),
            })
    }

    /// Enqueues [`prompt_rows`]: `n` rows, of which visual ones lie in `visual`, which has `n_visual`.
    ///
    /// # Errors
    /// [`Error::Shape`] if memory is too small, [`Error::Cuda`].
    pub fn prompt_rows(
        &self,
        rows: &Memory,
        float: Float,
        source: &Memory,
        table: &Table,
        (visual, n_visual): (&Memory, usize),
        n: usize,
    ) -> Result<()> {
        table.check()?;
        has(rows, 0, &[n, table.d, float.bytes()])?;
        has(source, 0, &[n, 4])?;
        has(visual, 0, &[n_visual, table.d, float.bytes()])?;
        let [table_rows, scales] = table.args();
        let args = [
            Arg::Memory(rows, 0),
            Arg::Memory(source, 0),
            table_rows,
            scales,
            Arg::Memory(visual, 0),
            int(table.vocab),
            int(table.d),
        ];
        let name = format!("prompt_rows_{}_{}", table.suffix(), float.suffix());
        let kernel = self.find(&name)?;
        // SAFETY: the kernel's arguments, within the memory that was checked above. Sources of rows that are not
        // there are the caller's not to upload.
        unsafe { kernel.launch(prompt_rows::dims(n as u32), &args) }
    }

    /// Enqueues [`prune`] of `n` visual rows of width `d` by their lengths, of which `keep` stay.
    ///
    /// # Errors
    /// As [`Kernels::prompt_rows`]; rows are whole times 16 bytes, and no more than a launch takes.
    pub fn prune(
        &self,
        (features, float): (&Memory, Float),
        pruned: &Pruned<'_>,
        (n, d): (usize, usize),
        keep: usize,
    ) -> Result<()> {
        let row = d * float.bytes();
        if !row.is_multiple_of(16) || n > prune::MOST_ROWS || !(1..=n).contains(&keep) {
            return Err(Error::Shape {
                name: "visual rows".to_owned(),
                expected: format!(
                    "1 to all of at most {} of whole times 16 bytes",
                    prune::MOST_ROWS
                ),
                actual: format!("{keep} of {n} of {row} bytes"),
            });
        }
        has(features, 0, &[n, row])?;
        has(pruned.scores, 0, &[n, 4])?;
        has(pruned.ticket, 0, &[4])?;
        has(pruned.kept, 0, &[keep, 4])?;
        let rows = match pruned.rows {
            Some((rows, first)) => {
                has(rows, first * row, &[keep, row])?;
                Arg::Memory(rows, first * row)
            }
            None => Arg::Null,
        };
        let args = [
            Arg::Memory(features, 0),
            Arg::Null,
            Arg::Memory(pruned.scores, 0),
            Arg::Memory(pruned.ticket, 0),
            Arg::Memory(pruned.kept, 0),
            rows,
            int(n),
            int(d),
            int(keep),
        ];
        let kernel = self.find(&format!("prune_{}", float.suffix()))?;
        // SAFETY: the kernel's arguments, within the memory that was checked above.
        unsafe { kernel.launch(prune::dims(n as u32, false), &args) }
    }

    /// Enqueues [`step_inputs`] for a pass of `rows` rows.
    ///
    /// # Errors
    /// As [`Kernels::prompt_rows`].
    pub fn step_inputs(&self, inputs: &StepInputs<'_>, rows: usize) -> Result<()> {
        let StepInputs {
            step,
            embeds,
            float,
            positions,
            mask,
            table,
            capacity,
        } = *inputs;
        table.check()?;
        has(step, 0, &[Step::WORDS, 4])?;
        has(embeds, 0, &[rows, table.d, float.bytes()])?;
        has(positions, 0, &[rows, 8])?;
        has(mask, 0, &[capacity + rows, 8])?;
        let [table_rows, scales] = table.args();
        let args = [
            Arg::Memory(step, 0),
            Arg::Memory(embeds, 0),
            Arg::Memory(positions, 0),
            Arg::Memory(mask, 0),
            table_rows,
            scales,
            int(table.vocab),
            int(table.d),
            int(rows),
            int(capacity),
        ];
        let name = format!("step_inputs_{}_{}", table.suffix(), float.suffix());
        let kernel = self.find(&name)?;
        // SAFETY: the kernel's arguments, within the memory that was checked above.
        unsafe { kernel.launch(step_inputs::dims(rows as u32), &args) }
    }

    /// Enqueues [`kv_append`]: `rows` new rows of `row_bytes` in each of `heads` heads.
    ///
    /// # Errors
    /// As [`Kernels::prompt_rows`]; rows are whole times 16 bytes.
    pub fn kv_append(
        &self,
        step: &Memory,
        (cache, capacity): (&Memory, usize),
        (fresh, rows): (&Memory, usize),
        heads: usize,
        row_bytes: usize,
    ) -> Result<()> {
        has(step, 0, &[Step::WORDS, 4])?;
        has(cache, 0, &[heads, capacity, row_bytes])?;
        has(fresh, 0, &[heads, rows, row_bytes])?;
        let packs = row_bytes / 16;
        let dims = kv_append::dims(heads as u32, rows as u32, packs as u32);
        let Some(dims) = dims.filter(|_| row_bytes.is_multiple_of(16)) else {
            return Err(Error::Shape {
                name: "kv cache".to_owned(),
                expected: "heads of whole times 16 bytes a row, for one launch".to_owned(),
                actual: format!("{heads} of {row_bytes} bytes, {rows} rows"),
            });
        };
        let args = [
            Arg::Memory(step, 0),
            Arg::Memory(cache, 0),
            Arg::Memory(fresh, 0),
            int(heads),
            int(capacity),
            int(rows),
            int(packs),
        ];
        let kernel = self.find("kv_append")?;
        // SAFETY: the kernel's arguments, within the memory that was checked above.
        unsafe { kernel.launch(dims, &args) }
    }

    /// Enqueues [`verify`] over `rows` rows of logits; `out` has room for `max_out` of the state.
    ///
    /// # Errors
    /// As [`Kernels::prompt_rows`].
    pub fn verify(
        &self,
        step: &Memory,
        best: &Memory,
        out: &Memory,
        (logits, float): (&Memory, Float),
        vocab: usize,
        rows: usize,
    ) -> Result<()> {
        has(step, 0, &[Step::WORDS, 4])?;
        has(best, 0, &[MAX_DRAFT + 1, 8])?;
        has(out, 0, &[MAX_DRAFT + 1, 4])?;
        has(logits, 0, &[rows, vocab, float.bytes()])?;
        let args = [
            Arg::Memory(step, 0),
            Arg::Memory(best, 0),
            Arg::Memory(out, 0),
            Arg::Memory(logits, 0),
            int(vocab),
        ];
        let kernel = self.find(&format!("verify_{}", float.suffix()))?;
        let dims: Dims = verify::dims(vocab as u32, rows as u32);
        // SAFETY: the kernel's arguments, within the memory that was checked above.
        unsafe { kernel.launch(dims, &args) }
    }
}

/// What [`prune`] writes.
#[derive(Clone, Copy)]
pub struct Pruned<'a> {
    /// `[n]` f32.
    pub scores: &'a Memory,
    /// `[1]` u32, zero before and after.
    pub ticket: &'a Memory,
    /// `[keep]` i32.
    pub kept: &'a Memory,
    /// Rows, and the first of them that is written.
    pub rows: Option<(&'a Memory, usize)>,
}

/// What [`step_inputs`] reads and writes.
#[derive(Clone, Copy)]
pub struct StepInputs<'a> {
    /// State of the answer.
    pub step: &'a Memory,
    /// `[rows, d]`, written.
    pub embeds: &'a Memory,
    /// Their width.
    pub float: Float,
    /// `[rows]` i64, written.
    pub positions: &'a Memory,
    /// `[capacity + rows]` i64, written.
    pub mask: &'a Memory,
    /// Embeddings.
    pub table: &'a Table,
    /// Rows of the KV cache.
    pub capacity: usize,
}

fn int<'a>(n: usize) -> Arg<'a> {
    Arg::Int(n as i32)
}

/// Refuses memory that is smaller than the product of `sizes` from `offset` on.
fn has(memory: &Memory, offset: usize, sizes: &[usize]) -> Result<()> {
    let bytes = sizes
        .iter()
        .try_fold(1usize, |n, &size| n.checked_mul(size));
    memory.span(offset, bytes.unwrap_or(usize::MAX)).map(|_| ())
}
