//! The path's tests: pure stages by tables and properties, stories over real sockets.
#![expect(clippy::disallowed_methods, reason = "the applications of a test dial and accept by themselves")]

mod admission;
mod authorize;
mod node;
mod panics;
mod resolve;
mod stories;
