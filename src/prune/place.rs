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
    let mut places = Vec::new();
    write_places(view, total, &mut places).then_some(places)
}

/// Writes what [`places`] gives; false, and nothing is written, if nobody knows them.
pub fn write_places(view: &View, total: usize, places: &mut Vec<Place>) -> bool {
    places.clear();
    let pictures = view.n_pictures.max(1);
    let per_picture = total / pictures;
    let side = per_picture.isqrt();
    let is_grid = side > 0 && side * side * pictures == total && view.side.is_multiple_of(side);
    let place = |token: usize| Place {
        picture: token / per_picture,
        row: token % per_picture / side,
        column: token % side,
    };
    if is_grid {
        places.extend((0..total).map(place));
    }
    is_grid
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
