//! The real `meshctl` against an agent with fixed answers on a Unix socket, and the manual page held to what it prints.

mod agent;
mod asking;
mod control;
mod documentation;
mod rows;
