//! What smoothing finds in a graph: activations, what reads them, and what makes them.

use crate::onnx::proto::GraphProto;

use super::{maps, rows};

/// Activations whose channels can be divided together, because everything that makes them can be
/// divided, and everything that reads them takes the factors into its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// The activations; more than one where they are added to each other.
    pub(super) tensors: Vec<String>,
    /// Channels of each.
    pub(super) channels: usize,
    /// Dimensions behind the channels: 0 of rows, 2 of feature maps.
    pub(super) inner_dims: usize,
    /// What reads them.
    pub(super) readers: Vec<Reader>,
    /// What makes them.
    pub(super) sources: Vec<Source>,
}

/// A weight that a group is multiplied with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reader {
    /// Its name.
    pub(super) weight: String,
    /// How its elements meet channels.
    pub(super) layout: Layout,
}

/// Which channel of its input an element of a weight meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[channels, n]` of a product.
    Rows,
    /// `[n, channels, inner]` of a convolution, `inner` the size of its kernel.
    Columns {
        /// Elements of the kernel.
        inner: usize,
    },
    /// `[channels * outputs, 1, …]` of a depthwise convolution.
    Depthwise {
        /// Outputs of each channel.
        outputs: usize,
    },
}

impl Layout {
    /// The channel of the element in column `col` of row `row`, rows being those of axis 0.
    pub(super) fn channel(self, row: usize, col: usize) -> usize {
        match self {
            Self::Rows => row,
            Self::Columns { inner } => col / inner,
            Self::Depthwise { outputs } => row / outputs,
        }
    }
}

/// What makes a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Constants with an element a channel, or a single one, that node `node` reads at `inputs`.
    Vectors {
        /// Index of the node.
        node: usize,
        /// Which of its inputs.
        inputs: Vec<usize>,
    },
    /// Columns of a product's weight, or filters (axis 0) of a convolution's, and a bias: input
    /// `bias.1` of node `bias.0`.
    Weight {
        /// Name of the weight.
        weight: String,
        /// Whether it is a convolution's.
        filters: bool,
        /// The bias.
        bias: Option<(usize, usize)>,
    },
}

/// All groups of a graph.
pub(super) fn groups(graph: &GraphProto) -> Vec<Group> {
    let mut groups = rows::find(graph);
    groups.extend(maps::find(graph));
    groups
}
