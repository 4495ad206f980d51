//! Prompts and decodings against transformers and tokenizers (Python), and hostile text files.
//!
//! Goldens: `tests/golden/text/make_text_golden.py`. Ids must be equal, there is no tolerance.

mod common;
mod files;
mod prompts;
mod templates;
