//! Lowered graphs give the same numbers as the originals on the CPU engine.
//!
//! | file | what is compared |
//! |------|------------------|
//! | `attention` | grouped-query and multi-head attention over random shapes, with the engine and with a plain reference |
//! | `operators` | norms, activations, rotary embedding, packed weights over random shapes |
//! | `refused`   | forms that are not lowered |
//! | `files`     | every tiny model folder: prompt, then steps on a growing cache |
//!
//! `tools/zoo/compare_lowered.py` compares the same forms in ONNX Runtime.

mod attention;
mod files;
mod operators;
mod refused;
mod support;
