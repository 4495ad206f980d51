//! A model and the integers that it is to be made of, as the CPU engine runs them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::backend::CpuBackend;
use crate::build::{
    Capacity, ComponentKind, Cuts, LeftOut, Numerics, Prepared, Quantization, Runner, prepare,
};
use crate::bundle::Precision;
use crate::cpu::Session;
use crate::error::Result;
use crate::model::Model;

/// What is judged.
pub struct Subject<'a> {
    /// The model.
    pub model: &'a Model,
    /// The precision that its engines are to have.
    pub precision: Precision,
    /// How it is quantized.
    pub quantization: &'a Quantization,
    /// Set by another thread to stop.
    pub cancel: Arc<AtomicBool>,
}

/// Which nodes are quantized, of those that the quantization means.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'a> {
    /// None: the reference, in the same form.
    Nothing,
    /// All but some.
    Except(&'a LeftOut),
}

impl Subject<'_> {
    /// A component's graph with Q/DQ around the chosen nodes, the rest in FP32.
    ///
    /// # Errors
    /// Those of reading and quantizing.
    pub fn graph(&self, kind: ComponentKind, choice: Choice<'_>) -> Result<Prepared> {
        let mut quantization = self.quantization.clone();
        match choice {
            Choice::Nothing => quantization.options.only = Some(BTreeSet::new()),
            Choice::Except(left_out) => quantization.left_out.extend(left_out),
        }
        let numerics = Numerics {
            precision: self.precision,
            quantization: Some(&quantization),
        };
        let capacity = Capacity::new(&self.model.config, None, 0, 1)?;
        prepare(
            kind,
            self.model,
            Runner::Cpu,
            numerics,
            &Cuts::default(),
            &capacity,
            &self.cancel,
        )
    }

    /// The whole model with the chosen nodes quantized, and the embedding table if it is to be.
    ///
    /// # Errors
    /// As [`Subject::graph`], and those of the engine.
    pub fn backend(&self, choice: Choice<'_>) -> Result<CpuBackend> {
        let session = |kind| Session::load(&self.graph(kind, choice)?.graph);
        let vision = session(ComponentKind::Vision)?;
        let decoder = session(ComponentKind::Decoder)?;
        let mut backend = CpuBackend::new(self.model, vision, decoder)?;
        if self.quantization.embedding {
            let embed = self.graph(ComponentKind::Embed, choice)?.graph;
            backend = backend.with_embedding(&embed, &self.model.config)?;
        }
        Ok(backend)
    }

    /// The model as its files are.
    ///
    /// # Errors
    /// Those of reading, and of the engine.
    pub fn reference(&self) -> Result<CpuBackend> {
        CpuBackend::load(self.model)
    }
}
