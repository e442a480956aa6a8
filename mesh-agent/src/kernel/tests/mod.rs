//! The programs on a real kernel: attached, asked and detached. Each test is a node of its own and needs root.

mod cell;
mod direct;
mod inbound;
mod lifecycle;
mod makes;
mod outbound;
mod pod;
mod records;
mod takeover;
