//! Where a visual token stands in the frame.

use crate::preprocess::View;

/// Picture, row and column of a visual token. A frame that is cut has several pictures, the whole of
/// it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which picture of the frame.
    pub picture: usize,
    /// Row in the picture's grid of tokens.
    pub row: usize,
    /// Column in it.
    pub column: usize,
}

/// Places of all `total` tokens of a frame; `None` if nobody knows them: a tower that left a picture
/// out, or whose tokens are no square grid.
pub fn places(view: &View, total: usize) -> Option<Vec<Place>> {
    let pictures = view.n_pictures.max(1);
    let per_picture = total / pictures;
    let side = per_picture.isqrt();
    let is_grid = side > 0 && side * side * pictures == total && view.side.is_multiple_of(side);
    let place = |token: usize| Place {
        picture: token / per_picture,
        row: token % per_picture / side,
        column: token % side,
    };
    is_grid.then(|| (0..total).map(place).collect())
}

/// Places in one line, for tokens of which nothing is known but their order.
pub(super) fn line(n: usize) -> Vec<Place> {
    let place = |column| Place {
        picture: 0,
        row: 0,
        column,
    };
    (0..n).map(place).collect()
}
