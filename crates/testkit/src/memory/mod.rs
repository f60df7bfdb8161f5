//! Ports in memory, for tests of the runtime's own logic: a bus that forgets what was not durable when
//! it crashes, a source that reads a log, a parked store. Not stand-ins for real adapters: those are
//! tested against their servers.

mod bus;
mod parked;
mod source;

pub use bus::MemoryBus;
pub use parked::MemoryParkedStore;
pub use source::MemorySource;
