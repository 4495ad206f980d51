//! The state of an answer as it lies in the device's memory: every kernel of a step reads it, and
//! `verify` moves it on, so that a step is one replay of a graph that the host does not touch.

/// Most drafts of a pass, as in `device.cuh`.
pub const MAX_DRAFT: usize = 8;

/// Most ids that close an answer.
pub const MAX_EOS: usize = 8;

/// Why an answer ended, as in `device.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Stop {
    /// It has not.
    Running = 0,
    /// The model closed it.
    Eos = 1,
    /// It has as many tokens as were allowed.
    Length = 2,
    /// A logit was NaN.
    NanLogits = 3,
    /// No logit was above minus infinity.
    NoLogits = 4,
}

/// `Step` of `device.cuh`, field by field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows of the KV cache in use.
    pub cache_len: i32,
    /// Position of the newest token.
    pub position: i32,
    /// The newest token, which the next pass is fed.
    pub newest: i32,
    /// Drafts that the next pass is fed behind it.
    pub n_draft: i32,
    /// They.
    pub draft: [i32; MAX_DRAFT],
    /// Tokens of the answer.
    pub n_out: i32,
    /// Most tokens of the answer.
    pub max_out: i32,
    /// A [`Stop`].
    pub stop: i32,
    /// Tokens that the last pass gave.
    pub taken: i32,
    /// Ids that close the answer.
    pub n_eos: i32,
    /// They.
    pub eos: [i32; MAX_EOS],
    /// Blocks of the running launch that are done; 0 between launches.
    pub ticket: i32,
}

impl Step {
    /// 32-bit words of the state.
    pub const WORDS: usize = 10 + MAX_DRAFT + MAX_EOS;

    /// The state as it lies in memory.
    pub fn to_words(&self) -> [i32; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        let fields = [self.cache_len, self.position, self.newest, self.n_draft]
            .into_iter()
            .chain(self.draft)
            .chain([self.n_out, self.max_out, self.stop, self.taken, self.n_eos])
            .chain(self.eos)
            .chain([self.ticket]);
        for (word, field) in words.iter_mut().zip(fields) {
            *word = field;
        }
        words
    }

    /// The state that lies in memory.
    pub fn from_words(words: &[i32; Self::WORDS]) -> Self {
        let mut words = words.iter().copied();
        let mut next = || words.next().unwrap_or(0);
        Self {
            cache_len: next(),
            position: next(),
            newest: next(),
            n_draft: next(),
            draft: std::array::from_fn(|_| next()),
            n_out: next(),
            max_out: next(),
            stop: next(),
            taken: next(),
            n_eos: next(),
            eos: std::array::from_fn(|_| next()),
            ticket: next(),
        }
    }
}
