//! Pruning on the device: by a score that a kernel finds, straight into the rows that the decoder reads.

use std::ops::Range;

use super::arena::Arena;
use super::decoder::Decoder;
use crate::backend::{Prefill, Prune};
use crate::cuda::kernels::{Float, prune};
use crate::cuda::{Device, Memory};
use crate::error::{Error, Result};
use crate::prune::{DeviceScore, Kept};

/// Memory of the kernel, and what it has left.
pub(super) struct Pruning {
    scores: Memory,
    ticket: Memory,
    kept: Memory,
    host_kept: Vec<i32>,
    /// Visual rows that stand in the decoder's input already, from `first` on; none if it is empty.
    placed: Vec<usize>,
    first: usize,
}

impl Pruning {
    /// Memory for frames of at most `most` rows.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(most: usize, arena: &mut Arena<'_>) -> Result<Self> {
        Ok(Self {
            scores: arena.alloc("pruning", &[most, 4])?,
            ticket: arena.alloc("pruning", &[4])?,
            kept: arena.alloc("pruning", &[most, 4])?,
            host_kept: vec![0; most],
            placed: Vec::with_capacity(most),
            first: 0,
        })
    }

    /// Rows of the decoder's input are others now.
    pub fn forget(&mut self) {
        self.placed.clear();
    }

    /// Whether the visual rows of a prompt stand where it wants them already.
    pub fn has_placed(&self, prompt: &Prefill<'_>) -> bool {
        !self.placed.is_empty()
            && self.placed == prompt.visual
            && slots(prompt).is_some_and(|slots| slots.start == self.first)
    }

    /// Keeps rows of a frame of `n`, if a kernel can do what the request wants.
    ///
    /// # Errors
    /// [`Error::Shape`] naming a row that is not finite; those of the device.
    pub fn run(
        &mut self,
        device: &Device,
        decoder: &Decoder,
        (features, float): (&Memory, Float),
        n: usize,
        request: &Prune<'_>,
    ) -> Result<Option<Kept>> {
        self.forget();
        let keep = request.keep;
        let all = request.candidates.iter().copied().eq(0..n);
        let Some(DeviceScore::Shortness) = request.policy.device_score().filter(|_| all) else {
            return Ok(None);
        };
        if !(1..n).contains(&keep) || n > prune::MOST_ROWS || !decoder.has_packed_rows(float) {
            return Ok(None);
        }
        // Between other tokens they are filled when the prompt is read.
        let slots = slots(&request.prompt).filter(|slots| slots.len() == n);
        let first = slots.map(|slots| slots.start);
        let memory = [&self.scores, &self.ticket, &self.kept];
        decoder.prune(memory, (features, float), n, keep, first)?;
        let kept = &mut self.host_kept[..keep];
        device.download(&self.kept, 0, bytemuck::cast_slice_mut(kept))?;
        if let Ok(row) = usize::try_from(-1 - i64::from(kept[0])) {
            return Err(Error::Shape {
                name: "image_features".to_owned(),
                expected: "finite numbers".to_owned(),
                actual: format!("others in row {row}"),
            });
        }
        let indices: Vec<usize> = kept.iter().map(|&row| row as usize).collect();
        let mut scores = vec![0f32; n];
        device.download(&self.scores, 0, bytemuck::cast_slice_mut(&mut scores))?;
        if let Some(first) = first {
            self.placed.extend_from_slice(&indices);
            self.first = first;
        }
        Ok(Some(Kept {
            indices,
            scores,
            merge: None,
        }))
    }
}

/// Where the slots of a prompt stand, if they stand together.
fn slots(prompt: &Prefill<'_>) -> Option<Range<usize>> {
    let is_slot = |id: &u32| *id == prompt.image_token;
    let first = prompt.ids.iter().position(is_slot)?;
    let last = prompt.ids.iter().rposition(is_slot)?;
    let together = prompt.ids[first..=last].iter().all(is_slot);
    together.then_some(first..last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_stand_together_are_found() {
        let of = |ids: &[u32]| {
            slots(&Prefill {
                ids,
                positions: &[],
                visual: &[],
                image_token: 9,
                reserve: 0,
            })
        };
        assert_eq!(of(&[1, 9, 9, 2]), Some(1..3));
        assert_eq!(of(&[9]), Some(0..1));
        assert_eq!(of(&[1, 9, 2, 9]), None);
        assert_eq!(of(&[1, 2]), None);
        assert_eq!(of(&[]), None);
    }
}
