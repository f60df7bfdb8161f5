//! What is set aside: how a parked change is written, and which keys and streams are held back.

mod codec;
mod describe;
mod holds;

pub use codec::decode;
pub use describe::describe;
pub use holds::{Admitted, Holds};
