//! A backend whose passes are timed.

use super::pace::{Pace, Pass};
use crate::backend::{Backend, Chosen, Logits, Prefill, Prune};
use crate::error::Result;
use crate::preprocess::PixelValues;
use crate::prune::{Kept, Needs};

/// Passes everything on, and notes how long passes take.
pub struct Paced<'a> {
    backend: &'a mut dyn Backend,
    pace: &'a Pace,
}

impl<'a> Paced<'a> {
    /// Of a backend; `pace` learns.
    pub fn new(backend: &'a mut dyn Backend, pace: &'a Pace) -> Self {
        Self { backend, pace }
    }

    /// The pass of the vision tower over an image.
    pub fn vision(image: &PixelValues) -> Pass {
        Pass::Vision(image.pixels.shape()[0])
    }
}

impl Backend for Paced<'_> {
    fn encode(&mut self, image: &PixelValues) -> Result<usize> {
        let pass = Self::vision(image);
        self.pace.measure(pass, || self.backend.encode(image))
    }

    fn prepare_prune(&mut self, needs: Needs) -> Result<()> {
        self.backend.prepare_prune(needs)
    }

    fn prune(&mut self, request: &Prune<'_>) -> Result<Kept> {
        self.pace
            .measure(Pass::Prune, || self.backend.prune(request))
    }

    fn visual_rows(&mut self, rows: &mut Vec<f32>) -> Result<()> {
        self.backend.visual_rows(rows)
    }

    fn reserve(&mut self, n_rows: usize) {
        self.backend.reserve(n_rows);
    }

    fn takes_positions(&self) -> bool {
        self.backend.takes_positions()
    }

    fn rows_are_independent(&self) -> bool {
        self.backend.rows_are_independent()
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        let pass = Pass::Prefill(prompt.ids.len());
        self.pace.measure(pass, || self.backend.prefill(prompt))
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        let pass = Pass::Step(ids.len());
        self.pace.measure(pass, || self.backend.step(ids, position))
    }

    fn prefill_greedily(&mut self, prompt: &Prefill<'_>) -> Result<Option<Chosen>> {
        let pass = Pass::Prefill(prompt.ids.len());
        chosen(self.pace, pass, || self.backend.prefill_greedily(prompt))
    }

    fn step_greedily(&mut self, ids: &[u32], position: u32) -> Result<Option<Chosen>> {
        let pass = Pass::Step(ids.len());
        chosen(self.pace, pass, || {
            self.backend.step_greedily(ids, position)
        })
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.backend.rollback(n_rows)
    }

    fn hidden(&self) -> Option<&[f32]> {
        self.backend.hidden()
    }
}

/// Notes the time of a pass that chose tokens; a backend that leaves the choice to its caller has done none.
fn chosen(
    pace: &Pace,
    pass: Pass,
    run: impl FnOnce() -> Result<Option<Chosen>>,
) -> Result<Option<Chosen>> {
    let done = pace.measure(pass, || run().map_err(Some)?.ok_or(None));
    match done {
        Ok(chosen) => Ok(Some(chosen)),
        Err(None) => Ok(None),
        Err(Some(error)) => Err(error),
    }
}
