//! Pure codecs: bytes to messages and back. No I/O.

pub mod format;
pub mod pgoutput;
