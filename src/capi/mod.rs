//! The C interface: `include/trtvlm.h` is made of this module.
//!
//! Position in the house: a door beside the command line. Entries check their arguments, call
//! [`pipeline`](crate::pipeline), and write what came of it into memory of the caller.
//!
//! | file       | what |
//! |------------|------|
//! | `entry`    | the functions, each behind one guard against panics |
//! | `raw`      | the only places that follow a caller's addresses |
//! | `types`    | structs and constants as C sees them |
//! | `frame`, `settings` | what a caller describes, checked |
//! | `files`    | models whose files lie in memory |
//! | `session`  | a model with its buffers, one answer at a time |
//! | `registry` | handles to sessions; one that was closed is found out |
//! | `status`   | codes and texts |
//!
//! A handle is a number in a pointer's clothes: it is looked up, never followed. So a handle that was
//! closed, or never was one, is a status in every build, and a session that is closed while it answers
//! lives until the answer is done.

mod entry;
mod files;
mod frame;
mod raw;
mod registry;
mod session;
mod settings;
mod status;
mod types;

#[cfg(test)]
mod tests;

pub use entry::*;
pub use status::Status;
pub use types::*;
