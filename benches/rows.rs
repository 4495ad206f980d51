//! What a pass of a decoder costs by its number of rows, and what the decoder takes in memory.
//!
//! ```text
//! cargo bench --bench rows -- DECODER.onnx... [--rows 1,2,3,5,9] [--past 300] [--repeats 7]
//! ```
//!
//! Prints a JSON object for each file: milliseconds by rows (the least of the repeats, with `past`
//! rows in the cache), of the prefill of those rows, of loading, and MiB in memory after loading.
//! `benches/peers/rows.py` runs it beside onnxruntime.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rten::{NodeId, Value, ValueOrView};
use rten_tensor::Tensor;
use trtvlm::cpu::{Session, instructions};
use trtvlm::huge_pages::HugePages;
use trtvlm::onnx::OnnxModel;
use trtvlm::onnx::passes::{LOGIT_ROWS, select_logit_rows};

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

struct Options {
    files: Vec<String>,
    rows: Vec<usize>,
    past: usize,
    repeats: usize,
}

fn options() -> Result<Options> {
    let mut options = Options {
        files: Vec::new(),
        rows: vec![1, 2, 3, 5, 9],
        past: 300,
        repeats: 7,
    };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--rows" => {
                let rows = value()?;
                options.rows = rows.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--past" => options.past = value()?.parse()?,
            "--repeats" => options.repeats = value()?.parse()?,
            _ => options.files.push(arg),
        }
    }
    if options.files.is_empty() {
        eprintln!("rows: no decoder named, nothing measured");
    }
    Ok(options)
}

/// Memory of this process in MiB.
fn resident_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("VmRSS")?.parse::<f64>()? / 1024.0)
}

/// Elements that look random, of unit size.
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / 8_388_608.0 - 1.0
    }
}

struct Decoder {
    session: Session,
    past: Vec<NodeId>,
    outputs: Vec<NodeId>,
    cache: Vec<Value>,
    n_rows: usize,
    width: usize,
    noise: Noise,
}

impl Decoder {
    fn load(path: &str, capacity: usize) -> Result<Self> {
        let mut model = OnnxModel::load(Path::new(path))?;
        if !model.graph().input.iter().any(|i| i.name == LOGIT_ROWS) {
            select_logit_rows(&mut model)?;
        }
        let inputs = model.graph().inputs();
        let session = Session::load(&model)?;
        let embeds = inputs.iter().find(|i| i.name == "inputs_embeds");
        let width = embeds
            .and_then(|i| i.fixed(2))
            .context("width of inputs_embeds")?;
        let (mut past, mut cache, mut outputs) =
            (Vec::new(), Vec::new(), vec![session.output("logits")?]);
        for input in inputs
            .iter()
            .filter(|i| i.name.starts_with("past_key_values"))
        {
            let (Some(heads), Some(size)) = (input.fixed(1), input.fixed(3)) else {
                bail!(
                    "{}: heads and width of `{}` are not fixed",
                    path,
                    input.name
                );
            };
            past.push(session.input(&input.name)?);
            outputs.push(session.output(&input.name.replace("past_key_values", "present"))?);
            cache.push(Tensor::<f32>::with_capacity(&[1, heads, capacity, size], 2).into());
        }
        Ok(Self {
            session,
            past,
            outputs,
            cache,
            n_rows: 0,
            width,
            noise: Noise(1),
        })
    }

    /// One pass over new rows, logits of the last `n_logits`; in milliseconds.
    fn pass(&mut self, rows: usize, n_logits: usize) -> Result<f64> {
        let x: Vec<f32> = (0..rows * self.width).map(|_| self.noise.next()).collect();
        let all = self.n_rows + rows;
        let positions: Vec<i32> = (self.n_rows..all).map(|p| p as i32).collect();
        let logits: Vec<i32> = (rows - n_logits..rows).map(|r| r as i32).collect();
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = Vec::new();
        let mut give = |name: &str, value: Value| -> Result<()> {
            if self.session.has_input(name) {
                inputs.push((self.session.input(name)?, value.into()));
            }
            Ok(())
        };
        give(
            "inputs_embeds",
            Tensor::from_data(&[1, rows, self.width], x).into(),
        )?;
        give("attention_mask", Tensor::<i32>::full(&[1, all], 1).into())?;
        give(
            "position_ids",
            Tensor::from_data(&[1, rows], positions).into(),
        )?;
        give(LOGIT_ROWS, Tensor::from_data(&[n_logits], logits).into())?;
        let cache = self.cache.drain(..).map(ValueOrView::Value);
        inputs.extend(self.past.iter().copied().zip(cache));
        let start = Instant::now();
        let mut values = self.session.run(inputs, &self.outputs)?.into_iter();
        let ms = start.elapsed().as_secs_f64() * 1e3;
        std::hint::black_box(values.next());
        self.cache.extend(values);
        self.n_rows = all;
        Ok(ms)
    }

    fn rollback(&mut self, n_rows: usize) {
        for value in &mut self.cache {
            if let Value::FloatTensor(cache) = value {
                cache.clip_dim(2, 0..n_rows);
            }
        }
        self.n_rows = n_rows;
    }
}

fn main() -> Result<()> {
    let options = options()?;
    for file in &options.files {
        let most = options.rows.iter().copied().max().unwrap_or(1);
        let (before, start) = (resident_mib()?, Instant::now());
        let mut decoder = Decoder::load(file, options.past + most)?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let memory_mib = resident_mib()? - before;
        let prefill_ms = decoder.pass(options.past, 1)?;
        let mut ms = serde_json::Map::new();
        for &rows in &options.rows {
            let mut least = f64::INFINITY;
            for _ in 0..options.repeats {
                least = least.min(decoder.pass(rows, rows)?);
                decoder.rollback(options.past);
            }
            ms.insert(rows.to_string(), least.into());
        }
        let report = serde_json::json!({
            "engine": "trtvlm",
            "file": file,
            "instructions": instructions(),
            "past": options.past,
            "load_ms": load_ms,
            "memory_mib": memory_mib,
            "prefill_ms": prefill_ms,
            "rows_ms": ms,
        });
        println!("{report}");
    }
    Ok(())
}
