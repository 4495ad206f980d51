//! Where a frame's cells lie.

use crate::preprocess::{Frame, View};
use crate::prune::places;

/// The square grid of a picture's visual rows, laid over the frame.
///
/// Coordinates are in units of the frame's longer side, from its top left corner, so that distances are the same in
/// both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Cells of a side.
    pub side: usize,
    /// The visual row of the first cell; the others follow, row by row.
    pub first: usize,
    /// The top left corner of the first cell.
    pub corner: [f64; 2],
    /// Width and height of a cell.
    pub cell: [f64; 2],
    /// Width and height of the frame.
    pub size: [f64; 2],
}

impl Grid {
    /// That of the last picture of a frame, which shows the whole of it, of `total` visual rows; `None` if nobody
    /// knows where they stand.
    pub fn new(frame: &Frame, view: &View, total: usize) -> Option<Self> {
        let (width, height) = (frame.width() as f64, frame.height() as f64);
        let last = places(view, total)?.pop()?;
        let side = last.row + 1;
        let pixels = (view.side / side) as f64;
        let [left, top, right, bottom] = view.in_frame(last.picture, [0.0, 0.0, pixels, pixels]);
        let long = width.max(height);
        Some(Self {
            side,
            first: total - side * side,
            corner: [left / long, top / long],
            cell: [(right - left) / long, (bottom - top) / long],
            size: [width / long, height / long],
        })
    }

    /// Number of cells.
    pub fn n(&self) -> usize {
        self.side * self.side
    }

    /// The centre of a cell.
    pub fn centre(&self, cell: usize) -> [f64; 2] {
        let (row, column) = (cell / self.side, cell % self.side);
        let at =
            |axis: usize, index: usize| self.corner[axis] + (index as f64 + 0.5) * self.cell[axis];
        [at(0, column), at(1, row)]
    }

    /// Whether a cell sees the frame: its centre is no padding.
    pub fn sees(&self, cell: usize) -> bool {
        let [x, y] = self.centre(cell);
        (0.0..self.size[0]).contains(&x) && (0.0..self.size[1]).contains(&y)
    }

    /// The cell that a point lies in; `None` if the model does not see it.
    pub fn cell_at(&self, [x, y]: [f64; 2]) -> Option<usize> {
        let index = |axis: usize, at: f64| {
            let index = ((at - self.corner[axis]) / self.cell[axis]).floor();
            (0.0..self.side as f64)
                .contains(&index)
                .then_some(index as usize)
        };
        Some(index(1, y)? * self.side + index(0, x)?)
    }

    /// Row and column of the ninth of a frame of this size that a point lies in.
    pub fn ninth_of([x, y]: [f64; 2], size: [f64; 2]) -> (usize, usize) {
        let third = |at: f64, size: f64| ((at * 3.0 / size).max(0.0) as usize).min(2);
        (third(y, size[1]), third(x, size[0]))
    }

    /// The cells that touch one, at corners too.
    pub fn around(&self, cell: usize) -> impl Iterator<Item = usize> + use<> {
        let side = self.side;
        let near = move |n: usize| n.saturating_sub(1)..(n + 2).min(side);
        let columns = near(cell % side);
        near(cell / side)
            .flat_map(move |row| columns.clone().map(move |column| row * side + column))
            .filter(move |&other| other != cell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(width: usize, height: usize) -> Frame {
        Frame::from_fn("frame", width, height, |_| 0).expect("frame")
    }

    fn view(n_pictures: usize, grid: Option<(usize, usize)>, content: [usize; 4]) -> View {
        View {
            n_pictures,
            side: 8,
            grid,
            content,
            shown: [0.0, 0.0, 32.0, 16.0],
        }
    }

    #[test]
    fn grid_of_a_padded_frame_knows_which_cells_see_it() {
        // 32 x 16 pixels as 8 x 4 in the middle of a square of 8 x 8 with 4 x 4 cells.
        let grid = Grid::new(&frame(32, 16), &view(1, None, [0, 2, 8, 6]), 16).expect("grid");
        assert_eq!((grid.side, grid.first), (4, 0));
        assert_eq!(grid.size, [1.0, 0.5]);
        let seen: Vec<usize> = (0..16).filter(|&cell| grid.sees(cell)).collect();
        assert_eq!(seen, [4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(grid.centre(4), [0.125, 0.125]);
        assert_eq!(grid.cell_at([0.125, 0.125]), Some(4));
        assert_eq!(grid.cell_at([0.99, 0.49]), Some(11));
        assert_eq!(grid.cell_at([0.5, 0.9]), None);
        assert_eq!(Grid::ninth_of([0.99, 0.3], grid.size), (1, 2));
        assert_eq!(Grid::ninth_of([0.0, 0.5], grid.size), (2, 0));
    }

    #[test]
    fn grid_of_tiles_is_that_of_the_whole_frame() {
        let view = view(3, Some((1, 2)), [0, 0, 16, 8]);
        let grid = Grid::new(&frame(32, 16), &view, 12).expect("grid");
        assert_eq!((grid.side, grid.first), (2, 8));
        let seen = [0, 1, 2, 3].map(|cell| grid.centre(cell));
        assert_eq!(
            seen,
            [[0.25, 0.125], [0.75, 0.125], [0.25, 0.375], [0.75, 0.375]]
        );
        assert_eq!(Grid::new(&frame(32, 16), &view, 11), None);
    }

    #[test]
    fn cells_around_one_are_those_that_touch_it() {
        let grid = Grid::new(&frame(8, 8), &view(1, None, [0, 0, 8, 8]), 16).expect("grid");
        let around = |cell| grid.around(cell).collect::<Vec<usize>>();
        assert_eq!(around(0), [1, 4, 5]);
        assert_eq!(around(5), [0, 1, 2, 4, 6, 8, 9, 10]);
        assert_eq!(around(15), [10, 11, 14]);
    }
}
