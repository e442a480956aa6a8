//! The account: chapters of claims. A claim is printed with what was seen, after it was looked at; a false one is printed
//! as false and remembered.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use crate::signals::Interrupt;

/// What has been claimed so far.
pub struct Account<'a> {
    interrupt: &'a Interrupt,
    verified: u32,
    refuted: Vec<String>,
}

impl<'a> Account<'a> {
    /// Nothing yet.
    pub fn new(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, verified: 0, refuted: Vec::new() }
    }

    /// Begins a chapter.
    pub fn chapter(&self, title: &str) {
        println!("\n{title}");
    }

    /// Whether somebody pressed Ctrl-C: nothing more is played then.
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.has_come()
    }

    /// Looks, then prints the claim and what was seen. `None` when it was not true or not looked at.
    pub fn claim<T: Seen>(&mut self, text: &str, look: impl FnOnce() -> Result<T, String>) -> Option<T> {
        // The end is looked at even then.
        if self.is_interrupted() && !text.contains("is left") {
            return None;
        }
        // The harness says by a panic that something is not as it should be.
        let result = catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|panic| Err(reason(&*panic)));
        match result {
            Ok(seen) => {
                self.verified += 1;
                println!("  [verified] {text}{}", seen.shown());
                Some(seen)
            }
            Err(reason) => {
                println!("  [NOT TRUE] {text}: {reason}");
                self.refuted.push(text.to_owned());
                None
            }
        }
    }

    /// The last line, and the exit code.
    pub fn close(self) -> ExitCode {
        let (verified, refuted) = (self.verified, self.refuted.len());
        println!("\n{verified} statements verified, {refuted} not true");
        for text in &self.refuted {
            println!("  not true: {text}");
        }
        if refuted == 0 && verified > 1 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it failed without saying why").to_owned()
}

/// What a claim can show of what was seen.
pub trait Seen {
    /// Appended to the claim.
    fn shown(&self) -> String;
}

impl Seen for () {
    fn shown(&self) -> String {
        String::new()
    }
}

impl Seen for String {
    fn shown(&self) -> String {
        if self.is_empty() { String::new() } else { format!(": {self}") }
    }
}
