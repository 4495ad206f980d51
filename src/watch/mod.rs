//! Frames as they come: from folders, cameras, videos and pipes.
//!
//! Position in the house: a [`Reader`] gives one frame after the other, [`Latest`] keeps the newest of them
//! for who is ready for it. Answers are somebody else's.
//!
//! | source | how |
//! |--------|-----|
//! | folder, pattern | image files in the order of their names |
//! | `/dev/videoN`, video file | `ffmpeg`, a child process that writes Y4M |
//! | pipe | MJPEG or Y4M, told apart by their beginning, or raw frames of a format that is given |

mod child;
mod files;
mod latest;
mod mjpeg;
mod raw;
mod reader;
mod source;
mod y4m;

pub use files::Files;
pub use latest::{Latest, Taken};
pub use mjpeg::Mjpeg;
pub use raw::{Raw, RawSpec};
pub use reader::{Next, Reader, detect};
pub use source::Source;
pub use y4m::Y4m;
