//! The decoder: a prompt, then passes over a cache of fixed capacity.
//!
//! | memory | shape | |
//! |--------|-------|-|
//! | `cache` | `[2 * layers * kv_heads, capacity, head_dim]` | keys and values, layer by layer |
//! | `fresh` | `[2 * layers * kv_heads, rows, head_dim]` | new rows of a pass, then moved to the cache |
//! | `state` | [`Step`] | what a pass is fed, and what came of it |
//! | `hidden` | `[capacity, d_model]` | what the LM head reads in each row, if the plan gives it |
//!
//! A prompt binds no cached rows, a pass binds the cache whole, whatever part of it is used. Taking
//! back a row moves a count: nothing of the cache is moved.

use super::arena::Arena;
use super::floats::{Floats, float_of};
use super::replay::Replay;
use crate::cuda::kernels::{Float, Kernels, MAX_DRAFT, Pruned, Step, StepInputs, Stop, Table};
use crate::cuda::{Device, Memory};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::onnx::passes::{HIDDEN, LOGIT_ROWS, NEW_PREFIX};
use crate::trt::{Engine, Execution};

/// Profiles of a decoder's plan, as `build` makes them.
const PREFILL: usize = 0;
const STEP: usize = 1;

/// Rows of a pass, rounded up to one of these.
const ROWS: [usize; 4] = [1, 3, 5, 9];

/// What passes share.
struct Shared {
    config: ModelConfig,
    kernels: Kernels,
    table: Table,
    capacity: usize,
    float: Float,
    kv_bytes: usize,
    logit_float: Float,
    state: Memory,
    best: Memory,
    out: Memory,
    source: Memory,
    embeds: Memory,
    positions: Memory,
    mask: Memory,
    logit_rows: Memory,
    cache: Memory,
    fresh: Memory,
    logits: Memory,
    hidden: Option<Hidden>,
}

/// Memory of hidden states.
struct Hidden {
    memory: Memory,
    float: Float,
}

pub(super) struct Decoder {
    shared: Shared,
    prefill: Execution,
    prefill_replay: Replay,
    /// Rows that the prefill is set to.
    prefill_rows: usize,
    passes: Vec<Pass>,
    /// Rows of the cache in use.
    n_rows: usize,
    logit_floats: Floats,
    hidden_floats: Option<Floats>,
    /// Positions of a prompt, on their way to the device.
    prompt_positions: Vec<i64>,
    /// The mask of a prompt of any length.
    ones: Vec<i64>,
}

/// A pass of so many rows.
struct Pass {
    rows: usize,
    run: Execution,
    replay: Replay,
}

/// Tokens that the device took from a pass, in order.
pub(super) struct Taken {
    pub ids: [u32; MAX_DRAFT + 1],
    pub n: usize,
}

/// What a decoder is bound to.
pub(super) struct Parts<'a> {
    pub engine: &'a Engine,
    pub config: &'a ModelConfig,
    pub kernels: Kernels,
    pub table: Table,
    pub capacity: usize,
    pub draft_tokens: usize,
}

impl Decoder {
    /// Binds a plan.
    ///
    /// # Errors
    /// [`Error::Shape`] if its tensors are not the family's; those of the device.
    pub fn new(parts: Parts<'_>, arena: &mut Arena<'_>) -> Result<Self> {
        let Parts {
            engine,
            config,
            kernels,
            table,
            capacity,
            draft_tokens,
        } = parts;
        let family = config.family;
        let float = |name: &str| {
            let tensor = engine.tensor(name).ok_or_else(|| Error::Shape {
                name: name.to_owned(),
                expected: "a tensor of the decoder's plan".to_owned(),
                actual: "none".to_owned(),
            })?;
            float_of(tensor)
        };
        let float_in = float(family.inputs_embeds)?;
        let kv_bytes = float(&family.past_key(0))?.bytes();
        let logit_float = float(family.logits)?;
        let heads = 2 * config.n_layers * config.n_kv_heads;
        let most = (draft_tokens + 1).min(MAX_DRAFT + 1);
        let row = config.head_dim * kv_bytes;
        let vocab = config.vocab;
        let hidden = match engine.tensor(HIDDEN).map(float_of).transpose()? {
            Some(float) => Some(Hidden {
                memory: arena.alloc("hidden states", &[capacity, config.d_model, float.bytes()])?,
                float,
            }),
            None => None,
        };
        let hidden_floats = hidden
            .as_ref()
            .map(|hidden| Floats::new(hidden.float, capacity * config.d_model));
        let shared = Shared {
            state: arena.alloc("state", &[Step::WORDS, 4])?,
            best: arena.alloc("state", &[MAX_DRAFT + 1, 8])?,
            out: arena.alloc("state", &[MAX_DRAFT + 1, 4])?,
            source: arena.alloc("decoder inputs", &[capacity, 4])?,
            embeds: arena.alloc(
                "decoder inputs",
                &[capacity, config.d_model, float_in.bytes()],
            )?,
            positions: arena.alloc("decoder inputs", &[capacity, 8])?,
            mask: arena.alloc("decoder inputs", &[capacity + MAX_DRAFT + 1, 8])?,
            logit_rows: arena.alloc("decoder inputs", &[2 * (MAX_DRAFT + 1), 8])?,
            cache: arena.alloc("kv cache", &[heads, capacity, row])?,
            fresh: arena.alloc("new kv rows", &[heads, capacity, row])?,
            logits: arena.alloc("logits", &[most, vocab, logit_float.bytes()])?,
            config: config.clone(),
            kernels,
            table,
            capacity,
            float: float_in,
            kv_bytes,
            logit_float,
            hidden,
        };
        let prefill = shared.execution(engine, PREFILL, 0)?;
        let wanted = ROWS.iter().copied().filter(|&rows| rows < most);
        let passes = wanted.chain([most]).map(|rows| {
            let mut run = shared.execution(engine, STEP, MAX_DRAFT + 1)?;
            shared.set_rows(&mut run, rows, shared.capacity, rows)?;
            Ok(Pass {
                rows,
                run,
                replay: Replay::default(),
            })
        });
        Ok(Self {
            passes: passes.collect::<Result<_>>()?,
            prefill,
            prefill_replay: Replay::default(),
            prefill_rows: 0,
            n_rows: 0,
            logit_floats: Floats::new(logit_float, most * vocab),
            hidden_floats,
            prompt_positions: Vec::with_capacity(capacity),
            ones: vec![1; capacity],
            shared,
        })
    }

    /// Gives every execution the scratch that all share, and tells the device which rows of a pass have
    /// logits: all.
    ///
    /// # Errors
    /// Those of the device.
    pub fn set_scratch(&mut self, device: &Device, scratch: &Memory) -> Result<()> {
        let rows: Vec<i64> = (0..=MAX_DRAFT as i64).collect();
        let at = (MAX_DRAFT + 1) * 8;
        device.upload(&self.shared.logit_rows, at, bytemuck::cast_slice(&rows))?;
        self.prefill.set_scratch(scratch)?;
        for pass in &mut self.passes {
            pass.run.set_scratch(scratch)?;
        }
        Ok(())
    }

    /// Number of scored tokens.
    pub fn n_vocab(&self) -> usize {
        self.shared.config.vocab
    }

    /// Whether its rows stand where it is told.
    pub fn takes_positions(&self) -> bool {
        self.prefill.has(self.shared.config.family.position_ids)
    }

    /// Most rows of a pass.
    pub fn most_rows(&self) -> usize {
        self.passes.last().map_or(0, |pass| pass.rows)
    }

    /// Reads a prompt: `source` says of each row whether it is an id or a visual row, as
    /// [`prompt_rows`](crate::cuda::kernels::prompt_rows) takes it.
    ///
    /// # Errors
    /// [`Error::Shape`] for a prompt beyond the capacity; those of the device.
    pub fn prefill(
        &mut self,
        device: &Device,
        source: &[i32],
        positions: &[u32],
        visual: (&Memory, usize),
    ) -> Result<()> {
        let shared = &self.shared;
        let n = source.len();
        if n == 0 || n > shared.capacity {
            return Err(Error::Shape {
                name: "prompt".to_owned(),
                expected: format!("1 to {} rows, the capacity of the bundle", shared.capacity),
                actual: n.to_string(),
            });
        }
        self.n_rows = 0;
        if n != self.prefill_rows {
            shared.set_rows(&mut self.prefill, n, 0, 1)?;
            self.prefill_replay.reset();
            self.prefill_rows = n;
        }
        let wide = &mut self.prompt_positions;
        wide.clear();
        wide.extend(positions.iter().map(|&p| i64::from(p)));
        device.upload(&shared.source, 0, bytemuck::cast_slice(source))?;
        device.upload(&shared.positions, 0, bytemuck::cast_slice(wide))?;
        device.upload(&shared.mask, 0, bytemuck::cast_slice(&self.ones[..n]))?;
        device.upload(&shared.logit_rows, 0, &(n as i64 - 1).to_le_bytes())?;
        // All rows go to the cache, from its first slot on.
        shared.set_state(
            device,
            &Step {
                n_draft: n as i32 - 1,
                ..Step::default()
            },
        )?;
        let run = &mut self.prefill;
        self.prefill_replay.run("a prompt", device, || {
            let (kernels, table) = (&shared.kernels, &shared.table);
            kernels.prompt_rows(
                &shared.embeds,
                shared.float,
                &shared.source,
                table,
                visual,
                n,
            )?;
            run.enqueue()?;
            shared.append(n)
        })?;
        self.n_rows = n;
        Ok(())
    }

    /// Whether rows of this width are whole times 16 bytes.
    pub fn has_packed_rows(&self, float: Float) -> bool {
        (self.shared.config.d_model * float.bytes()).is_multiple_of(16)
    }

    /// Keeps rows of a frame of `n` by their lengths, and moves them to the rows of the next prompt from `first` on; see
    /// [`prune`](crate::cuda::kernels::prune), whose scores, ticket and kept rows go to `memory`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn prune(
        &self,
        [scores, ticket, kept]: [&Memory; 3],
        features: (&Memory, Float),
        n: usize,
        keep: usize,
        first: Option<usize>,
    ) -> Result<()> {
        let shared = &self.shared;
        let pruned = Pruned {
            scores,
            ticket,
            kept,
            rows: first.map(|first| (&shared.embeds, first)),
        };
        let size = (n, shared.config.d_model);
        shared.kernels.prune(features, &pruned, size, keep)
    }

    /// The logits after the prompt, `[vocab]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn prompt_logits(&mut self, device: &Device) -> Result<Vec<f32>> {
        self.logits(device, 1)
    }

    /// The token after the prompt, chosen on the device.
    ///
    /// # Errors
    /// As [`Decoder::pass_taken`].
    pub fn prompt_taken(&mut self, device: &Device) -> Result<Taken> {
        let shared = &self.shared;
        // As if its last row were to be fed: what is taken then stands behind it.
        shared.set_state(
            device,
            &Step {
                cache_len: self.n_rows as i32 - 1,
                max_out: 1,
                ..Step::default()
            },
        )?;
        shared.verify(1)?;
        shared.taken(device)
    }

    /// Feeds the newest token and drafts, the first at `position`: all rows go to the cache.
    ///
    /// # Errors
    /// [`Error::Shape`] for more rows than the bundle has, or than the cache has slots; those of the
    /// device.
    pub fn pass(&mut self, device: &Device, ids: &[u32], position: u32) -> Result<()> {
        let shared = &self.shared;
        let room = shared.capacity - self.n_rows;
        let fitting = self.passes.iter_mut().find(|pass| pass.rows >= ids.len());
        let (Some(pass), false, true) = (fitting, ids.is_empty(), ids.len() <= room) else {
            return Err(Error::Shape {
                name: "rows of a pass".to_owned(),
                expected: format!("1 to {}, with {room} free in the cache", self.most_rows()),
                actual: ids.len().to_string(),
            });
        };
        let mut draft = [0; MAX_DRAFT];
        for (to, &id) in draft.iter_mut().zip(&ids[1..]) {
            *to = id as i32;
        }
        shared.set_state(
            device,
            &Step {
                cache_len: self.n_rows as i32,
                position: position as i32,
                newest: ids[0] as i32,
                n_draft: ids.len() as i32 - 1,
                draft,
                max_out: ids.len() as i32,
                ..Step::default()
            },
        )?;
        let (rows, run) = (pass.rows, &mut pass.run);
        pass.replay.run("a pass", device, || {
            let inputs = StepInputs {
                step: &shared.state,
                embeds: &shared.embeds,
                float: shared.float,
                positions: &shared.positions,
                mask: &shared.mask,
                table: &shared.table,
                capacity: shared.capacity,
            };
            shared.kernels.step_inputs(&inputs, rows)?;
            run.enqueue()?;
            shared.append(rows)?;
            shared.verify(rows)
        })?;
        self.n_rows += ids.len();
        Ok(())
    }

    /// Logits of the first `rows` rows of the newest pass, `[rows, vocab]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn logits(&mut self, device: &Device, rows: usize) -> Result<Vec<f32>> {
        let mut logits = vec![0f32; rows * self.n_vocab()];
        self.logit_floats
            .download(device, &self.shared.logits, &mut logits)?;
        Ok(logits)
    }

    /// Whether it gives the hidden states of its rows.
    pub fn gives_hidden(&self) -> bool {
        self.shared.hidden.is_some()
    }

    /// Reads the hidden states of the first rows of the newest pass, or prompt, `[rows, d_model]`, as many as
    /// `values` has room for; nothing, if the plan does not give them.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read_hidden(&mut self, device: &Device, values: &mut [f32]) -> Result<()> {
        match (&self.shared.hidden, &mut self.hidden_floats) {
            (Some(hidden), Some(floats)) => floats.download(device, &hidden.memory, values),
            _ => Ok(()),
        }
    }

    /// What the device took from the newest pass: the accepted drafts and the token behind them.
    ///
    /// # Errors
    /// [`Error::Logits`] if a row that counts has NaN, or nothing above minus infinity; those of the
    /// device.
    pub fn pass_taken(&mut self, device: &Device) -> Result<Taken> {
        self.shared.taken(device)
    }

    /// Forgets all rows of the cache but the first `n_rows`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer.
    pub fn rollback(&mut self, n_rows: usize) -> Result<()> {
        if n_rows > self.n_rows {
            return Err(Error::Shape {
                name: "KV cache".to_owned(),
                expected: format!("at least {n_rows} rows"),
                actual: self.n_rows.to_string(),
            });
        }
        self.n_rows = n_rows;
        Ok(())
    }
}

impl Shared {
    /// A way to run the plan with what does not change bound: inputs, cache and logits; `logit_rows` says
    /// where in that memory its rows of logits stand.
    fn execution(&self, engine: &Engine, profile: usize, logit_rows: usize) -> Result<Execution> {
        let family = self.config.family;
        let mut run = engine.execution(profile)?;
        run.bind(family.inputs_embeds, &self.embeds, 0)?;
        run.bind(family.logits, &self.logits, 0)?;
        run.bind(LOGIT_ROWS, &self.logit_rows, logit_rows * 8)?;
        for (name, memory) in [
            (family.attention_mask, &self.mask),
            (family.position_ids, &self.positions),
        ] {
            if run.has(name) {
                run.bind(name, memory, 0)?;
            }
        }
        if let Some(hidden) = &self.hidden {
            run.bind(HIDDEN, &hidden.memory, 0)?;
        }
        let bytes = self.config.n_kv_heads * self.capacity * self.row_bytes();
        for (index, (past, _)) in self.kv_names().enumerate() {
            run.bind(&past, &self.cache, index * bytes)?;
        }
        Ok(run)
    }

    /// Sets shapes for `rows` new rows behind `past` cached ones, with `logits` rows of logits.
    fn set_rows(&self, run: &mut Execution, rows: usize, past: usize, logits: usize) -> Result<()> {
        let config = &self.config;
        let family = config.family;
        run.set_shape(family.inputs_embeds, &[1, rows, config.d_model])?;
        run.set_shape(LOGIT_ROWS, &[logits])?;
        if run.has(family.attention_mask) {
            run.set_shape(family.attention_mask, &[1, past + rows])?;
        }
        if run.has(family.position_ids) {
            run.set_shape(family.position_ids, &[1, rows])?;
        }
        let bytes = config.n_kv_heads * rows * self.row_bytes();
        for (index, (name, new)) in self.kv_names().enumerate() {
            run.set_shape(&name, &[1, config.n_kv_heads, past, config.head_dim])?;
            run.bind(&new, &self.fresh, index * bytes)?;
        }
        Ok(())
    }

    /// Names of the cache's tensors, and of their new rows, in the order in which they lie.
    fn kv_names(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let family = self.config.family;
        (0..self.config.n_layers).flat_map(move |layer| {
            [
                (family.past_key(layer), format!("{NEW_PREFIX}.{layer}.key")),
                (
                    family.past_value(layer),
                    format!("{NEW_PREFIX}.{layer}.value"),
                ),
            ]
        })
    }

    /// Bytes of a row of one head.
    fn row_bytes(&self) -> usize {
        self.config.head_dim * self.kv_bytes
    }

    fn heads(&self) -> usize {
        2 * self.config.n_layers * self.config.n_kv_heads
    }

    fn set_state(&self, device: &Device, state: &Step) -> Result<()> {
        device.upload(&self.state, 0, bytemuck::cast_slice(&state.to_words()))
    }

    /// Enqueues the move of `rows` new rows to the cache.
    fn append(&self, rows: usize) -> Result<()> {
        let (cache, fresh) = ((&self.cache, self.capacity), (&self.fresh, rows));
        self.kernels
            .kv_append(&self.state, cache, fresh, self.heads(), self.row_bytes())
    }

    /// Enqueues the choice from `rows` rows of logits.
    fn verify(&self, rows: usize) -> Result<()> {
        let logits = (&self.logits, self.logit_float);
        let vocab = self.config.vocab;
        self.kernels
            .verify(&self.state, &self.best, &self.out, logits, vocab, rows)
    }

    fn taken(&self, device: &Device) -> Result<Taken> {
        let mut words = [0; Step::WORDS];
        let mut out = [0; MAX_DRAFT + 1];
        device.download(&self.out, 0, bytemuck::cast_slice_mut(&mut out))?;
        device.download(&self.state, 0, bytemuck::cast_slice_mut(&mut words))?;
        let state = Step::from_words(&words);
        let n = usize::try_from(state.n_out).unwrap_or(0).min(out.len());
        let broken = [Stop::NanLogits as i32, Stop::NoLogits as i32].contains(&state.stop);
        if broken || n == 0 {
            return Err(Error::Logits {
                what: match state.stop == Stop::NoLogits as i32 {
                    true => "no logit above minus infinity",
                    false => "NaN",
                },
                step: 0,
            });
        }
        Ok(Taken {
            ids: out.map(i32::cast_unsigned),
            n,
        })
    }
}
