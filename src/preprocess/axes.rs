//! Weights of axes that were needed before: a camera's frames are all of one size.

use super::filter::{Axis, Filter};

/// Axes that are kept: two for each resize of a tiled processor, and some for another camera.
const AXES: usize = 12;

/// What an axis depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) filter: Filter,
    /// Length before.
    pub(super) from: usize,
    /// Length after.
    pub(super) to: usize,
    /// What is wanted of it: from, to.
    pub(super) window: (usize, usize),
    /// Where the image lies before: offset, length.
    pub(super) inside: (usize, usize),
}

impl Span {
    fn axis(&self) -> Axis {
        let axis = Axis::new(
            self.filter,
            self.from,
            self.to,
            self.window.0..self.window.1,
        );
        axis.within(self.inside.0, self.inside.1)
    }
}

/// The newest axes.
#[derive(Debug, Default)]
pub(super) struct Axes {
    kept: Vec<(Span, Axis)>,
    /// The place that the next new one takes.
    next: usize,
}

impl Axes {
    /// The axes of two spans.
    pub(super) fn pair(&mut self, x: Span, y: Span) -> (&Axis, &Axis) {
        self.find(x);
        let y = self.find(y);
        // Once more: the other may have taken its place.
        let x = self.find(x);
        (&self.kept[x].1, &self.kept[y].1)
    }

    /// The place of an axis.
    fn find(&mut self, span: Span) -> usize {
        if let Some(at) = self.kept.iter().position(|(known, _)| *known == span) {
            return at;
        }
        let at = self.next;
        self.next = (self.next + 1) % AXES;
        match self.kept.get_mut(at) {
            Some(place) => *place = (span, span.axis()),
            None => self.kept.push((span, span.axis())),
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_is_right_whatever_was_asked_for_before() {
        let span = |to: usize| Span {
            filter: Filter::Bilinear,
            from: 50,
            to,
            window: (0, to),
            inside: (0, 50),
        };
        let mut axes = Axes::default();
        for n in 0..200 {
            let (a, b) = (1 + n * 7 % 31, 1 + n * 5 % 29);
            let (x, y) = axes.pair(span(a), span(b));
            assert_eq!((x.len(), y.len()), (a, b));
        }
        assert_eq!(axes.kept.len(), AXES);
    }
}
