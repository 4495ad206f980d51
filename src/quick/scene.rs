//! What is in a frame.

/// An object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thing {
    /// Index of its kind.
    pub kind: usize,
    /// Index of its colour, if it is known.
    pub colour: Option<usize>,
    /// Its centre, in units of the frame's longer side.
    pub at: [f64; 2],
}

/// Objects, and what they stand on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scene {
    /// Objects; those that were found are in the order of their cells.
    pub things: Vec<Thing>,
    /// Index of the ground, if it is known.
    pub ground: Option<usize>,
    /// Width and height of the frame, in units of its longer side.
    pub size: [f64; 2],
}

impl Scene {
    /// Indices of the objects of a kind, and of a colour if one is given.
    pub fn such(&self, kind: usize, colour: Option<usize>) -> impl Iterator<Item = usize> + '_ {
        let is = move |thing: &Thing| {
            thing.kind == kind && colour.is_none_or(|colour| thing.colour == Some(colour))
        };
        let things = self.things.iter().enumerate();
        things.filter(move |(_, thing)| is(thing)).map(|(i, _)| i)
    }

    /// The closest pair of a kind and another: indices and distance.
    pub fn closest(&self, kind: usize, other: usize) -> Option<(usize, usize, f64)> {
        let distance = |a: usize, b: usize| {
            let ([x, y], [u, v]) = (self.things[a].at, self.things[b].at);
            (x - u).hypot(y - v)
        };
        let pairs = self.such(kind, None).flat_map(|a| {
            let others = self.such(other, None).filter(move |&b| b != a);
            others.map(move |b| (a, b))
        });
        let pairs = pairs.map(|(a, b)| (a, b, distance(a, b)));
        pairs.min_by(|a, b| a.2.total_cmp(&b.2))
    }
}

/// How sure an object is: probabilities.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sure {
    /// That it is exactly one.
    pub presence: f64,
    /// Of each kind, given that it is one.
    pub kinds: Vec<f64>,
    /// Of each colour.
    pub colours: Vec<f64>,
    /// That its centre lies in the ninth of the frame where it is said to be.
    pub place: f64,
}

/// A scene as it was found, with how sure everything is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Looked {
    /// What was found.
    pub scene: Scene,
    /// Of each object.
    pub sures: Vec<Sure>,
    /// Logarithm of the probability that no object of a kind lies in a cell outside those that were found.
    pub elsewhere: Vec<f64>,
    /// The same for any kind.
    pub nothing_elsewhere: f64,
    /// Probability of the ground; 1 if none is told.
    pub ground: f64,
    /// Probability that a centre lies in each cell; 0 in padding.
    pub centres: Vec<f64>,
}
